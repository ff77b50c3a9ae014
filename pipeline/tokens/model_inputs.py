"""Conversion of encoded examples to model inputs: tensors padded on the right, with masks and segment ids."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from headatlas.store.errors import ConfigError, HeadAtlasError, UnsupportedModelError
from headatlas.store.schema.token_table import TokenFlag

from ..corpora.examples import EncodedExample, TokenSequence
from ..models.attention_implementation import implementation
from ..models.position_limit import count_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models.image_processor import ImageReader


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device. The host does not wait for a GPU, because the copy is made from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class ModelInputs:
    """Arguments of a forward pass, and masks of the special tokens by sequence."""

    arguments: dict[str, Tensor]
    special: dict[str, Bool[Tensor, "batch token"]]
    labels: Int64[Tensor, "batch token"] | None = None
    """Ids of masked tokens, -100 elsewhere; None if none are masked."""
    terms: Int64[Tensor, "batch term 3"] | None = None
    """Predictions to read: position, id of the token, sign (0 for none); None if all are read."""

    def repeat(self, n: int) -> ModelInputs:
        """Return the inputs of the same examples, `n` times one after the other."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.repeat(n, *[1] * (tensor.dim() - 1))

        return ModelInputs(
            {name: repeat(tensor) for name, tensor in self.arguments.items()},
            {name: repeat(tensor) for name, tensor in self.special.items()},
            None if self.labels is None else repeat(self.labels),
            None if self.terms is None else repeat(self.terms),
        )


class InputBuilder:
    """Builds the inputs of one model."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, images: ImageReader | None = None
    ) -> None:
        accepted = inspect.signature(model.forward).parameters
        pad = tokenizer.pad_token_id if tokenizer is not None else None
        pad = pad if pad is not None else getattr(model.config, "pad_token_id", None)
        # padding is hidden, so any id that the model has will do
        self._pad = pad if isinstance(pad, int) and 0 <= pad < (count_embeddings(model) or 1) else 0
        self._device = model.device
        self._images = images
        self._two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
        self._segments = "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 1

    def build(self, examples: Sequence[EncodedExample]) -> ModelInputs:
        """Build the inputs of a batch, padded on the right to the longest example. Images all have the same size."""
        sources = [example.source for example in examples]
        if self._images is not None:
            special = to_device(np.stack([(s.flags & TokenFlag.SPECIAL) != 0 for s in sources]), self._device)
            pixels = self._images.pixels([example.example for example in examples])
            return ModelInputs({"pixel_values": pixels}, {"source": special})
        ids, mask, special = self._pad_batch(sources)
        arguments = {"input_ids": ids, "attention_mask": mask}
        flags: dict[str, Tensor] = {"source": special}
        if self._segments:
            arguments["token_type_ids"] = self._segment_ids(sources, ids)
        if self._two_sided:
            targets = [example.target for example in examples if example.target is not None]
            assert len(targets) == len(examples), "every example of an encoder–decoder has a target"
            ids, mask, special = self._pad_batch(targets)
            arguments |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
            flags["target"] = special
        return ModelInputs(arguments, flags)

    def build_probe(self, example: EncodedExample, n_source: int = 3, n_target: int = 2) -> dict[str, Tensor]:
        """Build an input for finding the sites: so many tokens of the source and of the target, or the image.

        Tokens are repeated if the example is shorter.
        """
        if self._images is not None:
            return {"pixel_values": self._images.pixels([example.example])}
        sides = [(example.source, "", n_source), (example.target if self._two_sided else None, "decoder_", n_target)]
        arguments: dict[str, Tensor] = {}
        for tokens, prefix, length in sides:
            if tokens is not None:
                ids = np.resize(tokens.id, length).astype(np.int64)
                arguments[f"{prefix}input_ids"] = torch.from_numpy(ids)[None].to(self._device)
                arguments[f"{prefix}attention_mask"] = torch.ones((1, length), dtype=torch.int64, device=self._device)
        return arguments

    def _pad_batch(self, sequences: Sequence[TokenSequence]) -> tuple[Tensor, Tensor, Tensor]:
        longest = max(len(sequence) for sequence in sequences)
        ids = np.full((len(sequences), longest), self._pad, dtype=np.int64)
        mask = np.zeros((len(sequences), longest), dtype=np.int64)
        special = np.zeros((len(sequences), longest), dtype=bool)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence.id
            mask[row, : len(sequence)] = 1
            special[row, : len(sequence)] = (sequence.flags & TokenFlag.SPECIAL) != 0
        return to_device(ids, self._device), to_device(mask, self._device), to_device(special, self._device)

    def _segment_ids(self, sequences: Sequence[TokenSequence], ids: Tensor) -> Tensor:
        """Return 0 for the first text, and 1 from the first token of the second text to the end of the sequence."""
        segment = np.zeros(tuple(ids.shape), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            second = np.flatnonzero(sequence.flags & TokenFlag.SECOND)
            if len(second):
                segment[row, second[0] : len(sequence)] = 1
        return to_device(segment, self._device)


def check_length(model: PreTrainedModel, builder: InputBuilder, example: EncodedExample) -> None:
    """Run a model on an example that is longer than its configuration states.

    Raises
    ------
    ConfigError
        The model cannot run on it.
    """
    arguments = builder.build([example]).arguments
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            with suppress(UnsupportedModelError):  # models without SDPA use their own attention
                stack.enter_context(implementation(model, "sdpa"))
            model(**arguments)
    except (HeadAtlasError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} cannot run on {len(example.source)} tokens, which is more than its configuration "
            f"states: {error}. Lower tokens.max_tokens."
        ) from error
