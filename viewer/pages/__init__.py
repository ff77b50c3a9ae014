"""Pages of the viewer. Each builds its cards once and fills their frames from the state and the store."""
