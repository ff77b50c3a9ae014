"""The pattern language: a condition on (query position, key position), parsed and never evaluated as Python."""

from .named_patterns import LIBRARY, LibraryPattern
from .pattern import Pattern
from .pattern_files import read_patterns
from .vocabulary import Vocabulary

__all__ = ["LIBRARY", "LibraryPattern", "Pattern", "Vocabulary", "read_patterns"]
