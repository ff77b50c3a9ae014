"""The state of a reader, which the URL holds."""
