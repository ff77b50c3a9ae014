"""The compiled loops over stored edges and codes; numpy serves where they were not compiled (`..edge_scan`)."""

from .library import CodeScan, EdgeScan, Library, installed, load

__all__ = ["CodeScan", "EdgeScan", "Library", "installed", "load"]
