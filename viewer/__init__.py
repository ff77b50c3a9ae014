"""The Panel app and its components."""
