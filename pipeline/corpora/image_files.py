"""Images of a folder or of a list file, or a single image. A store keeps them by reference: path, SHA-256, size in pixels.

The reader decodes every image once, so that a damaged file is quarantined before the model runs. Decoding needs
Pillow (``pip install headatlas[images]``).
"""

from __future__ import annotations

import errno
import hashlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas.store.errors import ConfigError
from headatlas.store.schema.omissions import LISTED_NAMES, Omission

from .corpus_files import iter_lines
from .corpus_options import ImageCorpus
from .examples import CorpusExample
from .records import LeftOut, Quarantined, Record

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_IMAGE_BYTES = 64 << 20
MAX_PIXELS = 100_000_000


class UnreadableImage(Exception):
    """Raised if a file is not a usable image. The message is the reason."""


def read_images(options: ImageCorpus) -> Iterator[Record]:
    """Yield images sorted by path, or in the order of the list. The text of an example is its path within the corpus.

    Annotations: `image` (the same path), `image_sha256`, `width` and `height` in pixels, and `folder` for images in
    subfolders.
    """
    folder = options.path if options.path.is_dir() else options.path.parent
    for number, name in _names(options):
        if not isinstance(name, str):
            yield name
            continue
        path = folder / name
        try:
            image, digest, n_frames = read_image(path)
        except UnreadableImage as error:
            yield Quarantined(number, f"{name}: {error}")
            continue
        relative_path = Path(name)
        columns: dict[str, str | int | float | None] = {
            "image": name,
            "image_sha256": digest,
            "width": image.width,
            "height": image.height,
        }
        if relative_path.parent.name:
            columns["folder"] = relative_path.parent.name
        left_out = LeftOut()
        for frame in range(1, n_frames):
            left_out.add("only the first frame of an image is read", f"{name} frame {frame}", "frames")
        yield CorpusExample(
            id=relative_path.with_suffix("").as_posix(),
            text=name,
            columns=columns,
            image=path,
            left_out=left_out.omissions(),
        )


def _names(options: ImageCorpus) -> Iterator[tuple[int, str | Quarantined | Omission]]:
    """Yield numbered image paths, relative to the corpus folder or to the folder of the list."""
    if options.path.suffix.lower() in ENDINGS and options.path.is_file():
        yield 1, options.path.name
        return
    if not options.path.is_dir():
        for number, line in iter_lines(options.path, options.encoding):
            if isinstance(line, Quarantined) or line.strip():
                yield number, line if isinstance(line, Quarantined) else line.strip()
        return
    files = sorted(path.relative_to(options.path).as_posix() for path in options.path.rglob("*") if path.is_file())
    paths = [path for path in files if path.lower().endswith(ENDINGS)]
    if not paths:
        raise ConfigError(
            f"corpus.path {str(options.path)!r} is a folder without images; expected {', '.join(ENDINGS)}"
        )
    others = [path for path in files if not path.lower().endswith(ENDINGS) and not Path(path).name.startswith(".")]
    if others:
        reason = f"no image; expected {', '.join(ENDINGS)}"
        yield 0, Omission(what="files", n=len(others), reason=reason, names=tuple(others[:LISTED_NAMES]))
    yield from enumerate(paths, 1)


def read_image(path: Path, sha256: str | None = None) -> tuple[Image, str, int]:
    """Read the first frame of an image file in RGB, rotated by its EXIF orientation.

    Returns the image, the SHA-256 of the file and its number of frames.

    Raises
    ------
    UnreadableImage
        The file is missing, too large or damaged, or its hash differs from `sha256`.
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
        if not path.is_file():
            raise UnreadableImage("there is no such file")
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # a problem of this process, not of the file
            raise ConfigError(f"{path} cannot be opened now: {error.strerror}") from error
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_IMAGE_BYTES:
        raise UnreadableImage(f"larger than {MAX_IMAGE_BYTES} bytes")
    digest = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, digest):
        raise UnreadableImage("the file changed since the corpus was read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about metadata and size; the size is checked below
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableImage(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
                n_frames = getattr(image, "n_frames", 1)
                return ImageOps.exif_transpose(image).convert("RGB"), digest, n_frames
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise UnreadableImage("takes more memory than this machine has") from error
    except Exception as error:  # decoders raise errors of any type for damaged files
        raise UnreadableImage(f"is no image that can be decoded: {error}") from error
