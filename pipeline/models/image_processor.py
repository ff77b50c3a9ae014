"""Images for a vision transformer: its processor's pixels, and a token for each patch.

Patch tokens know their `row` and `column` in the grid (-1 for tokens of another kind, [CLS] first). The picture
itself is read again for every batch, by its path, and must be the file that the corpus was read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headatlas.store.errors import ConfigError, UnsupportedModelError
from headatlas.store.schema.token_table import MISSING, TokenFlag

from ..corpora.examples import CorpusExample, EncodedExample, TokenSequence
from ..corpora.image_files import UnreadableImage, read_image
from .model_folder import ModelFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ImageReader:
    """Turns images into the inputs of one model, and into tokens."""

    def __init__(self, processor: Any, model: PreTrainedModel) -> None:
        self._processor, self._model = processor, model
        self._tokens: TokenSequence | None = None

    @property
    def name(self) -> str:
        """The processor's class."""
        return type(self._processor).__name__

    def pixels(self, examples: Sequence[CorpusExample]) -> Tensor:
        """What the processor makes of some images, ``[image, channel, row, column]``.

        Raises
        ------
        ConfigError
            A file is gone or was changed.
        """
        pictures = []
        for example in examples:
            assert example.image is not None, "an image corpus has images"
            try:
                pictures.append(read_image(example.image, str(example.columns["image_sha256"]))[0])
            except UnreadableImage as error:
                raise ConfigError(f"{example.image}: {error}; bring the file back, or write a new store.") from error
        made = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        return made.to(self._model.device, self._model.dtype)

    def encode(self, example: CorpusExample) -> EncodedExample:
        """An image as its patches; all images of a model have the same."""
        if self._tokens is None:
            self._tokens = self._read_grid(self.pixels([example]))
        return EncodedExample(example, self._tokens)

    @torch.inference_mode()
    def _read_grid(self, pixels: Tensor) -> TokenSequence:
        """The tokens that the model makes of an image of this size.

        Raises
        ------
        UnsupportedModelError
            They are not patches in rows, with some tokens in front.
        """
        patch = getattr(self._model.config, "patch_size", None)
        height, width = (patch, patch) if isinstance(patch, int) else tuple(patch or (0, 0))[-2:]
        n_tokens = self._model(pixel_values=pixels)[0].shape[1]
        n_rows, n_columns = (pixels.shape[2] // height, pixels.shape[3] // width) if height and width else (0, 0)
        n_before = n_tokens - n_rows * n_columns
        if pixels.ndim != 4 or not n_rows or not 0 <= n_before <= 64:
            raise UnsupportedModelError(
                f"{type(self._model).__name__} makes {n_tokens} tokens of an image of {tuple(pixels.shape[2:])} pixels in patches of "
                f"{patch}; expected one for each patch, and a few in front."
            )
        row, column = np.divmod(np.arange(n_rows * n_columns, dtype=np.int32), np.int32(n_columns))
        front = ["[CLS]", *(f"[REG{k}]" for k in range(1, n_before))][:n_before]
        names = (*front, *(f"{r},{c}" for r, c in zip(row.tolist(), column.tolist(), strict=True)))
        none = np.full(n_tokens, MISSING, np.int32)
        places = {"row": none.copy(), "column": none.copy()}
        places["row"][n_before:], places["column"][n_before:] = row, column
        flags = np.zeros(n_tokens, np.uint8)
        flags[:n_before] = TokenFlag.SPECIAL
        nothing = np.zeros(n_tokens, np.int32)
        return TokenSequence(nothing, none, nothing, nothing, flags, names, names, places)


def load_image_reader(folder: ModelFolder, model: PreTrainedModel) -> ImageReader:
    """The image processor of a model folder.

    Raises
    ------
    ConfigError
        There is none, Pillow is not installed, or the model reads no images.
    """
    from transformers import AutoImageProcessor

    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "reading images needs Pillow, which is not installed; pip install 'headatlas[images]'"
        ) from error
    if model.main_input_name != "pixel_values":
        raise ConfigError(f"model {folder.name!r}: {type(model).__name__} reads no images; expected one such as ViT")
    try:
        processor = AutoImageProcessor.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:
        raise ConfigError(f"model {folder.name!r}: its image processor cannot be opened: {error}") from error
    return ImageReader(processor, model)
