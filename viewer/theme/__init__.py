"""Colours, fonts and token labels."""
