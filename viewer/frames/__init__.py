"""Arrays to frames for the browser."""
