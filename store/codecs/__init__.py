"""Codecs: names, bounds, numbers to weights and back, sparse rows, and the pair axis."""
