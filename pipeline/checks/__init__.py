"""Checks of the capture against the model's own attention."""
