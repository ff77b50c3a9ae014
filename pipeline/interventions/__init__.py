"""Interventions: the output or the attention of heads is changed in a running model, and the effect is measured."""
