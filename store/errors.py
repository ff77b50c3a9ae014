"""Errors that headatlas raises on purpose, grouped by the caller's reaction.

::

    HeadAtlasError
    ├── ConfigError          change the job file or the arguments           (also a ValueError)
    ├── ShapeError           pass arrays that fit together                  (also a ValueError)
    ├── PatternError         correct the expression; carries the faulty characters  (also a ValueError)
    ├── NotFoundError        request something that the store has           (also a KeyError)
    ├── FormatError          another program or a newer version wrote the store
    ├── CorruptSegmentError  an object is missing, truncated or changed: verify, then write it again
    ├── RemoteError          the network or the server failed: retry                (also an OSError)
    ├── MissingExtraError    install the extra that the message names       (also an ImportError)
    ├── UnsupportedModelError  the model cannot be captured faithfully
    └── BudgetError          request less, or allow more memory, time or rows

A message says what was wrong (with the value), what was expected, and what to do. The caller that knows the location
(store, segment, example) puts it in front of the message once, with `located`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HeadAtlasError(Exception):
    """Base class of all errors that headatlas raises on purpose. Programs can rely on the word in `kind`."""

    kind = "error"

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class ConfigError(HeadAtlasError, ValueError):
    """Invalid job file, command line or function argument."""

    kind = "config"


class ShapeError(HeadAtlasError, ValueError):
    """Arrays that disagree with each other or with the requirements of a call."""

    kind = "shape"


class PatternError(HeadAtlasError, ValueError):
    """Expression that cannot be parsed, or that contains an unknown name.

    `expression` is the text. `start` and `stop` delimit the faulty characters. `suggestions` are possible replacements
    for them, best first.
    """

    kind = "pattern"

    def __init__(
        self, message: str, expression: str = "", start: int = 0, stop: int = 0, suggestions: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.suggestions = suggestions
        self.expression, self.start, self.stop = expression, start, max(stop, start + 1)

    def pointed(self) -> str:
        """Return the message with the expression and carets under the mistake, on several lines."""
        mark = " " * self.start + "^" * (self.stop - self.start)
        return f"{self}\n  {self.expression}\n  {mark}" if self.expression else str(self)


class NotFoundError(HeadAtlasError, KeyError):
    """Request for a store, example, head or array that does not exist."""

    kind = "not-found"


class FormatError(HeadAtlasError):
    """Data that is not a headatlas store, or a store of a newer format version."""

    kind = "format"


class CorruptSegmentError(HeadAtlasError):
    """Committed object that is missing, has the wrong size or fails its checksum."""

    kind = "corrupt"


class RemoteError(HeadAtlasError, OSError):
    """Failure of a server: it did not respond, or refused a request."""

    kind = "remote"


class MissingExtraError(HeadAtlasError, ImportError):
    """Packages of an optional extra are not installed."""

    kind = "missing-extra"


class UnsupportedModelError(HeadAtlasError):
    """Model that does not use the attention interface, or that failed the self-check."""

    kind = "unsupported-model"


class BudgetError(HeadAtlasError):
    """Work that does not fit the memory, time or row budget."""

    kind = "budget"


@contextmanager
def located(location: str) -> Iterator[None]:
    """Put `location` in front of the message of any headatlas error raised inside the block.

    A message that already begins with `location` stays as it is. A message that begins with a part of it ("store,
    segment 0" of "store, segment 0, layer 2") gets the full location instead of that part.
    """
    try:
        yield
    except HeadAtlasError as error:
        message = str(error)
        if message.startswith(location):
            raise
        parts = location.split(", ")
        prefixes = (", ".join(parts[:n]) + ": " for n in range(len(parts) - 1, 0, -1))
        message = next((message.removeprefix(prefix) for prefix in prefixes if message.startswith(prefix)), message)
        error.args = (f"{location}: {message}", *error.args[1:])
        raise
