"""Readers that turn files into examples: one module and one options model for each kind of corpus."""
