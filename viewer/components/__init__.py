"""Components of the viewer, drawn on canvases by plain JavaScript without dependencies or a build step."""
