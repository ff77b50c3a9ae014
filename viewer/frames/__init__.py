"""Frames that the components receive, made of arrays and tokens."""
