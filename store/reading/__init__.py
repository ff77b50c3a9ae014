"""Lazy reading: segments, examples, labelled arrays, frames, and attention rebuilt from query and key."""
