"""Lazy reading of stores: segments, examples, labelled arrays, frames, and attention rebuilt from query and key."""
