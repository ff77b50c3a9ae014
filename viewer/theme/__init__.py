"""Colours and labels."""
