"""Images for a vision transformer: the pixels of its processor, and one token for each patch.

Patch tokens have their `row` and `column` in the grid. For other tokens, such as the leading [CLS], both are -1. The
image file is read again for every batch. It must not change after the corpus was read.
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
from .model_folder import ModelFolder, read_json
from .model_limits import check_image_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ImageReader:
    """Converts images to inputs and tokens of one model."""

    def __init__(self, processor: Any, model: PreTrainedModel) -> None:
        self._processor, self._model = processor, model
        self._tokens: TokenSequence | None = None

    @property
    def name(self) -> str:
        """Class name of the processor."""
        return type(self._processor).__name__

    def pixels(self, examples: Sequence[CorpusExample]) -> Tensor:
        """Read images and return the processor's pixels, ``[image, channel, row, column]``.

        Raises
        ------
        ConfigError
            A file is missing or was changed.
        """
        images = []
        for example in examples:
            assert example.image is not None, "examples of an image corpus have an image"
            try:
                images.append(read_image(example.image, str(example.columns["image_sha256"]))[0])
            except UnreadableImage as error:
                raise ConfigError(f"{example.image}: {error}. Restore the file, or write a new store.") from error
        values = self._processor(images=images, return_tensors="pt")["pixel_values"]
        return values.to(self._model.device, self._model.dtype)

    def encode(self, example: CorpusExample) -> EncodedExample:
        """Return an image as patch tokens. All images of a model have the same tokens."""
        if self._tokens is None:
            self._tokens = self._read_grid(self.pixels([example]))
        return EncodedExample(example, self._tokens)

    @torch.inference_mode()
    def _read_grid(self, pixels: Tensor) -> TokenSequence:
        """Return the tokens of an image of this size: the patches of the grid, row by row, after the leading tokens.

        Raises
        ------
        UnsupportedModelError
            The model's tokens are not a grid of patches with some tokens in front.
        """
        patch = getattr(self._model.config, "patch_size", None)
        height, width = (patch, patch) if isinstance(patch, int) else tuple(patch or (0, 0))[-2:]
        try:
            n_tokens = self._model(pixel_values=pixels)[0].shape[1]
        except (ValueError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"{type(self._model).__name__} cannot read the pixels of its image processor, {tuple(pixels.shape[1:])}: "
                f"{str(error).rstrip('.')}. Check the sizes in preprocessor_config.json and config.json."
            ) from error
        n_rows, n_columns = (pixels.shape[2] // height, pixels.shape[3] // width) if height and width else (0, 0)
        n_leading = n_tokens - n_rows * n_columns
        if pixels.ndim != 4 or not n_rows or not 0 <= n_leading <= 64:
            raise UnsupportedModelError(
                f"{type(self._model).__name__} returns {n_tokens} tokens for an image of {tuple(pixels.shape[2:])} pixels with patches "
                f"of {patch}; expected one for each patch, and at most 64 in front."
            )
        row, column = np.divmod(np.arange(n_rows * n_columns, dtype=np.int32), np.int32(n_columns))
        leading = ["[CLS]", *(f"[REG{k}]" for k in range(1, n_leading))][:n_leading]
        names = (*leading, *(f"{r},{c}" for r, c in zip(row.tolist(), column.tolist(), strict=True)))
        missing = np.full(n_tokens, MISSING, np.int32)
        grid_columns = {"row": missing.copy(), "column": missing.copy()}
        grid_columns["row"][n_leading:], grid_columns["column"][n_leading:] = row, column
        flags = np.zeros(n_tokens, np.uint8)
        flags[:n_leading] = TokenFlag.SPECIAL
        zeros = np.zeros(n_tokens, np.int32)
        return TokenSequence(zeros, missing, zeros, zeros, flags, names, names, grid_columns)


def load_image_reader(folder: ModelFolder, model: PreTrainedModel) -> ImageReader:
    """Load the image processor of a model folder.

    Raises
    ------
    ConfigError
        The folder has no image processor, Pillow is not installed, or the model does not read images.
    """
    from transformers import AutoImageProcessor

    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "reading images needs Pillow, which is not installed; pip install 'headatlas[images]'"
        ) from error
    if model.main_input_name != "pixel_values":
        raise ConfigError(
            f"model {folder.name!r}: {type(model).__name__} reads no images; expected a vision model such as ViT"
        )
    settings = folder.path / "preprocessor_config.json"
    if settings.exists():
        check_image_sizes(read_json(settings), f"{settings}")
    try:
        processor = AutoImageProcessor.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:
        raise ConfigError(f"model {folder.name!r}: its image processor cannot be opened: {error}") from error
    return ImageReader(processor, model)
