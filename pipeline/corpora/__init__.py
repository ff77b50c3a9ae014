"""Readers that turn files into examples."""
