"""Attention sites of a model, the collector of its attention calls, and models in eager mode."""
