"""Benchmarks: each module with a `main` compares things in one run and reports ratios, not clock times to trust."""
