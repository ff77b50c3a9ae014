"""The pattern language: a condition on (query position, key position), parsed and never evaluated as Python."""

from .files import read_patterns
from .library import LIBRARY, LibraryPattern
from .pattern import Pattern
from .vocabulary import Vocabulary

__all__ = ["LIBRARY", "LibraryPattern", "Pattern", "Vocabulary", "read_patterns"]
