"""Images of a folder, or those that a list names: kept by reference, as a path, a SHA-256 and a size in pixels.

Every image is decoded once while the corpus is read, so that a damaged one is quarantined before a model runs. Pillow
does it, which comes with ``pip install headatlas[images]``.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas.store.errors import ConfigError

from .corpus_options import ImageCorpus
from .examples import CorpusExample
from .records import Quarantined, iter_lines

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_IMAGE_BYTES = 64 << 20
MAX_PIXELS = 100_000_000


class UnreadableImage(Exception):
    """A file is no image that can be used; the message says why."""


def read_images(options: ImageCorpus) -> Iterator[CorpusExample | Quarantined]:
    """Images by the order of their paths, or of the list; the text of an example is its path within the corpus.

    Annotations: `image` (that path), `image_sha256`, `width` and `height` in pixels, and `folder` where there are some.
    """
    folder = options.path if options.path.is_dir() else options.path.parent
    for number, name in _names(options):
        if isinstance(name, Quarantined):
            yield name
            continue
        path = folder / name
        try:
            image, digest = read_image(path)
        except UnreadableImage as error:
            yield Quarantined(number, f"{name}: {error}")
            continue
        within = Path(name)
        columns: dict[str, str | int | float | None] = {
            "image": name,
            "image_sha256": digest,
            "width": image.width,
            "height": image.height,
        }
        if within.parent.name:
            columns["folder"] = within.parent.name
        yield CorpusExample(id=within.with_suffix("").as_posix(), text=name, columns=columns, image=path)


def _names(options: ImageCorpus) -> Iterator[tuple[int, str | Quarantined]]:
    """Paths of images below the folder, or relative to the list's."""
    if not options.path.is_dir():
        for number, line in iter_lines(options.path, options.encoding):
            if isinstance(line, Quarantined) or line.strip():
                yield number, line if isinstance(line, Quarantined) else line.strip()
        return
    found = sorted(
        path.relative_to(options.path).as_posix()
        for path in options.path.rglob("*")
        if path.suffix.lower() in ENDINGS and path.is_file()
    )
    if not found:
        raise ConfigError(
            f"corpus.path {str(options.path)!r} is a folder without images; expected {', '.join(ENDINGS)}"
        )
    yield from enumerate(found, 1)


def read_image(path: Path, sha256: str | None = None) -> tuple[Image, str]:
    """The first picture of a file in RGB, turned as its camera was held, and the SHA-256 of the file.

    Raises
    ------
    UnreadableImage
        It is missing, too large, damaged, or (where `sha256` is given) another file than before.
    ConfigError
        Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError(
            "reading images needs Pillow, which is not installed; pip install 'headatlas[images]'"
        ) from error
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise UnreadableImage(f"larger than {MAX_IMAGE_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error
    digest = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, digest):
        raise UnreadableImage("the file changed since the corpus was read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; size is checked here
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableImage(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
                return ImageOps.exif_transpose(image).convert("RGB"), digest
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"is no image that can be decoded: {error}") from error
