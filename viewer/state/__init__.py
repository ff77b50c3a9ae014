"""State of a reader, as the URL holds it."""
