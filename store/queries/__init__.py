"""Queries of a store: pattern search, query by example, relations, minimal pairs, dimensions, similar heads."""
