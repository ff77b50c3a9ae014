"""The attention sites of a model and the collector of their calls; models in eager mode."""
