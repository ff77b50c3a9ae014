"""Trace one input of a model into memory, for notebooks: without a corpus, a job file or a store.

The capture is that of jobs, including the self-check against the model's own eager attention. Attention, queries and
keys are float32, without rounding. A model that is captured in eager mode has attention only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch

from headatlas.store.errors import ConfigError, UnsupportedModelError
from headatlas.store.reading.example import Example
from headatlas.store.reading.memory_segment import MemorySegment
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.traces import Keep, TraceSpec

from ..calls.segment_buffers import SegmentBuffers
from ..capture.collector import TraceCollector
from ..capture.eager import find_sites, forwarding
from ..checks.eager_check import check_eager
from ..checks.layer_masks import describe_masks
from ..checks.selfcheck import check_capture
from ..corpora.examples import CorpusExample, EncodedExample
from ..models.position_limit import token_limit
from ..tokens.model_inputs import InputBuilder, check_length
from ..tokens.segment_tables import build_token_table
from ..tokens.tokenizer import encode
from .segment_groups import count_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEEP = Keep(attention="float32", query_key="float32", edges=8, statistics=True)


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    text_pair: str | None = None,
    *,
    target: str | None = None,
    add_special_tokens: bool = True,
) -> Example:
    """Run a model on one text and keep its attention, queries, keys and statistics.

    A model with a task head (a classifier, a language model) runs without the head. The model may use any attention
    implementation, and its state is restored afterwards. `target` is the input text of the decoder of an
    encoder–decoder.

    Returns
    -------
    An example as in a store, with `attention()`, `query()`, `key()`, `tokens()` and so on. The views accept it. Its
    `left_out` lists what the text or the model holds and the example does not; `repr` and the views show it.

    Raises
    ------
    ConfigError
        The text is too long for the model or cannot be encoded. Or `target` is missing, or the model has no use for it.
    UnsupportedModelError
        The model's attention cannot be captured correctly.
    """
    head, model = model, cast("PreTrainedModel", model.base_model)  # a task head has no attention of its own
    two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
    if two_sided != (target is not None):
        raise ConfigError(
            f"{type(model).__name__} is an encoder–decoder; pass target=, the text that its decoder reads."
            if two_sided
            else f"{type(model).__name__} is not an encoder–decoder; leave target out, or pass text_pair."
        )
    with torch.inference_mode(), _evaluating(head):
        encoded = _encode(model, tokenizer, CorpusExample("trace", text, text_pair, target), add_special_tokens)
        builder = InputBuilder(model, tokenizer)
        stated = token_limit(model, tokenizer).stated
        if stated is not None and len(encoded.source) > stated:
            check_length(model, builder, encoded)
        sites = find_sites(model, builder.build_probe(encoded))
        sites = describe_masks(model, tokenizer, sites, builder, [encoded])
        keep = KEEP if sites.capture == "interface" else KEEP.model_copy(update={"query_key": None})
        spec = TraceSpec(sites=sites.sites, keep=keep, statistics=tuple(STATISTICS), capture=sites.capture)
        n_tokens = count_tokens([encoded], spec)
        inputs = builder.build([encoded])
        lengths = {name: [int(n[0])] for name, n in n_tokens.items()}
        if sites.capture == "eager":
            check_eager(model, sites, inputs, lengths)
        else:
            check_capture(model, sites, keep, inputs, lengths)
        buffers, collector = SegmentBuffers(spec, n_tokens), TraceCollector(spec, sites)
        with forwarding(model, sites, collector) as forward:
            batch = collector.begin(buffers, [0], inputs.special)
            forward(inputs)
        if batch.failures:
            raise UnsupportedModelError(f"{type(model).__name__}: {next(iter(batch.failures.values()))}.")
        buffers.check_filled()
    tables = SegmentTables(
        ["trace"],
        [text],
        [text_pair],
        [target],
        tokens={sequence: build_token_table([encoded], sequence) for sequence in spec.sequences},
    )
    left_out = (*sites.left_out, *encoded.left_out)
    return MemorySegment(spec, tables, buffers.arrays, left_out).examples[0]


def _encode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, example: CorpusExample, add_special_tokens: bool
) -> EncodedExample:
    two_sided = example.target is not None
    limit = token_limit(model, tokenizer)
    (encoded,) = encode(
        [example],
        tokenizer,
        max_tokens=limit.positions or 1 << 30,
        on_too_long="whole",
        add_special_tokens=add_special_tokens,
        has_target=two_sided,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None) if two_sided else None,
    )
    if not isinstance(encoded, EncodedExample):
        raise ConfigError(f"the text cannot be traced: {encoded.reason}.")
    if not len(encoded.source) or (encoded.target is not None and not len(encoded.target)):
        raise ConfigError("the text has no tokens; pass a text with at least one token.")
    return encoded


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Set the model to evaluation mode inside the block, and restore the mode of every module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
