"""Stores read over a network: any fsspec URL, bytes fetched by range, cached in memory and on disk."""
