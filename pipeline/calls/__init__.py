"""Attention calls of a running model: the hook, the state of a batch, masks, and the arrays of a segment."""
