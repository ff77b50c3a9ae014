"""The web server: address, login and document."""
