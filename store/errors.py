"""Every error headatlas raises on purpose, grouped by what a caller would do about it.

::

    HeadAtlasError
    ├── ConfigError          change the job file or the arguments           (also a ValueError)
    ├── ShapeError           pass arrays that fit together                  (also a ValueError)
    ├── PatternError         mend the expression; carries where it broke    (also a ValueError)
    ├── NotFoundError        ask for something the store has                (also a KeyError)
    ├── FormatError          the store was written by something else, or a newer version
    ├── CorruptSegmentError  an object is missing, cut or changed: verify, then write it again
    ├── RemoteError          the network or its server failed: try again            (also an OSError)
    ├── MissingExtraError    install the extra that the message names       (also an ImportError)
    ├── UnsupportedModelError  the model cannot be captured faithfully
    └── BudgetError          ask for less, or allow more memory, time or rows

Messages say what was wrong (with the value), what was expected, and what to do. Where (store, segment, example) is
put in front once, by `located`, at the boundary that knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HeadAtlasError(Exception):
    """Base of all errors raised on purpose; `kind` is a stable word for programs."""

    kind = "error"

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class ConfigError(HeadAtlasError, ValueError):
    """A job file, a command line or a function argument is wrong."""

    kind = "config"


class ShapeError(HeadAtlasError, ValueError):
    """Arrays disagree with each other or with what the call needs."""

    kind = "shape"


class PatternError(HeadAtlasError, ValueError):
    """An expression cannot be read or names something unknown.

    `expression` is the text, `start` and `stop` the characters at fault, `suggestions` what may have been meant
    there, best first.
    """

    kind = "pattern"

    def __init__(
        self, message: str, expression: str = "", start: int = 0, stop: int = 0, suggestions: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.suggestions = suggestions
        self.expression, self.start, self.stop = expression, start, max(stop, start + 1)

    def pointed(self) -> str:
        """The message with the expression and an arrow under the mistake, over several lines."""
        mark = " " * self.start + "^" * (self.stop - self.start)
        return f"{self}\n  {self.expression}\n  {mark}" if self.expression else str(self)


class NotFoundError(HeadAtlasError, KeyError):
    """The store, example, head or array asked for is not there."""

    kind = "not-found"


class FormatError(HeadAtlasError):
    """The bytes are not a headatlas store, or one of a newer format version."""

    kind = "format"


class CorruptSegmentError(HeadAtlasError):
    """A committed object is missing, has the wrong size or fails its checksum."""

    kind = "corrupt"


class RemoteError(HeadAtlasError, OSError):
    """A server did not answer, or refused."""

    kind = "remote"


class MissingExtraError(HeadAtlasError, ImportError):
    """Packages of an optional extra are not installed."""

    kind = "missing-extra"


class UnsupportedModelError(HeadAtlasError):
    """The model does not go through the attention interface, or the self-check failed."""

    kind = "unsupported-model"


class BudgetError(HeadAtlasError):
    """The work does not fit the memory, time or row budget."""

    kind = "budget"


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put `where` in front of the message of any headatlas error raised inside the block.

    A message that begins with it stays; one that begins with a part of it ("store, segment 0" of "store, segment 0,
    layer 2") gets the whole instead.
    """
    try:
        yield
    except HeadAtlasError as error:
        told = str(error)
        if told.startswith(where):
            raise
        parts = where.split(", ")
        places = (", ".join(parts[:n]) + ": " for n in range(len(parts) - 1, 0, -1))
        told = next((told.removeprefix(place) for place in places if told.startswith(place)), told)
        error.args = (f"{where}: {told}", *error.args[1:])
        raise
