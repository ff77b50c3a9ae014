"""Mediation: the part of a text's effect on a model's choice that passes through the attention of heads."""
