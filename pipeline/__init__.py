"""Corpora and models in, segments out: the only part that loads torch and transformers."""
