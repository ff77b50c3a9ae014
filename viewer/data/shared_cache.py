"""The cache that all sessions share."""

from __future__ import annotations

from headatlas.store.files.byte_cache import ByteCache, size_of

__all__ = ["ByteCache", "size_of"]
