"""The web server: address, login, the document."""
