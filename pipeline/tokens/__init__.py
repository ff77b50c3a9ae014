"""Tokenization of the corpus, planning of batches, and inputs of the model."""
