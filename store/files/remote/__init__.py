"""Reading stores over a network: ranges of files from any fsspec URL, cached in memory and on disk."""
