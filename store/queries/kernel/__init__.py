"""The compiled loops over stored edges and codes. `..edge_scan` falls back to numpy if they are not installed."""

from .library import CodeScan, EdgeScan, Library, installed, load

__all__ = ["CodeScan", "EdgeScan", "Library", "installed", "load"]
