"""Benchmarks. Each module with a `main` compares several ways in one run and reports their ratios."""
