"""The compiled loop over stored edges; numpy serves where it was not compiled (`..edge_scan`)."""

from .library import EdgeScan, Library, installed, load

__all__ = ["EdgeScan", "Library", "installed", "load"]
