"""Codecs of attention and vectors: names, error bounds, encoding and decoding, sparse rows, and the pair axis."""
