"""Measures: what a model predicts with an intervention, compared with what it predicts without."""
