"""Encode a corpus for one model: texts, images, or prompts with their generated continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from headatlas.store.errors import BudgetError, ConfigError
from headatlas.store.schema.omissions import LISTED_NAMES, Omission, Omissions
from headatlas.store.schema.renamed import Renamed

from ..corpora.corpus import describe_corpus, read_corpus
from ..corpora.corpus_options import CorpusOptions
from ..corpora.examples import CorpusExample, EncodedExample, without_tokens
from ..corpora.records import Quarantined, Renaming
from ..models.model_options import ModelConfig
from ..progress import Event, Stage, format_bytes, plural
from .batch_plan import BatchLimits
from .token_options import GenerateConfig, TokensConfig
from .tokenizer import Skipped, encode

if TYPE_CHECKING:
    from ..models.sources import LoadedModel

OnEvent = Callable[[Event], None]
LISTED_QUARANTINED = 100
MAX_CORPUS_BYTES = 2 << 30
"""Largest memory of the examples of a corpus. Their tokens take about a hundred times as much."""


@dataclass(frozen=True)
class EncodingOptions:
    """The settings of a job that determine its token sequences. `limits` apply to the batches that generate text."""

    model: ModelConfig
    tokens: TokensConfig
    generate: GenerateConfig
    limits: BatchLimits


@dataclass(frozen=True)
class Corpus:
    """The contents of a corpus: examples, the first unreadable records, and the description that identifies it."""

    examples: list[CorpusExample]
    quarantined: list[Quarantined]
    n_quarantined: int
    """Number of all unreadable records."""
    description: dict[str, Any]
    left_out: tuple[Omission, ...] = ()
    """What the records of `examples` hold and the examples do not, and the unreadable records by reason."""
    renamed: Renamed = field(default_factory=Renamed)
    """Columns and ids that have other names in the store."""


def open_corpus(options: CorpusOptions, on_event: OnEvent = lambda event: None) -> Corpus:
    """Read a whole corpus.

    Raises
    ------
    ConfigError
        The corpus cannot be read or has no example.
    BudgetError
        Its examples take more than `MAX_CORPUS_BYTES`.
    """
    on_event(Stage(f"reading corpus {options.path}"))
    quarantined, examples = list[Quarantined](), list[CorpusExample]()
    left_out, columns, ids, n_ids = Omissions(), dict[str, str](), dict[str, str](), 0
    n_quarantined = n_bytes = 0
    for record in read_corpus(options):
        if isinstance(record, Omission):
            left_out.add(record)
            continue
        if isinstance(record, Renaming):
            n_ids += record.kind == "ids"
            if record.kind == "columns":
                columns[record.old] = record.new
            elif len(ids) < LISTED_NAMES:
                ids[record.new] = record.old
            continue
        if isinstance(record, Quarantined):
            n_quarantined += 1
            left_out.add(Omission(what="records", n=1, reason=record.reason, names=(record.location,)))
            if len(quarantined) < LISTED_QUARANTINED:
                quarantined.append(record)
            continue
        n_bytes += record.memory_bytes
        if n_bytes > MAX_CORPUS_BYTES:
            raise BudgetError(
                f"{options.path}: the first {len(examples)} examples take {format_bytes(n_bytes)} of memory; at most "
                f"{format_bytes(MAX_CORPUS_BYTES)} are read. Set corpus.sample, or name fewer files, or set "
                "corpus.max_examples and add the rest with corpus.skip and --extend."
            )
        for omission in record.left_out:
            left_out.add(omission)
        examples.append(record)
    if not examples:
        first = f"; the first: {quarantined[0].reason}" if quarantined else ""
        skipped = f" after the first {options.skip}, which corpus.skip leaves out" if options.skip else ""
        raise ConfigError(
            f"{options.path} has no example{skipped} ({n_quarantined} records could not be read{first}). Check corpus.kind, "
            "corpus.encoding and the names of the fields."
        )
    description = {**describe_corpus(options, examples), "n_quarantined": n_quarantined}
    renamed = Renamed(columns=columns, ids=ids, n_ids=n_ids)
    for line in renamed.lines():
        on_event(Stage(line))
    return Corpus(examples, quarantined, n_quarantined, description, tuple(left_out), renamed)


def encode_corpus(
    options: EncodingOptions, loaded: LoadedModel, corpus: Corpus, on_event: OnEvent = lambda event: None
) -> tuple[list[EncodedExample], dict[int, str]]:
    """Encode the corpus. Return the examples, and the reasons by index for examples without tokens.

    Prompts are not continued; see `continue_prompts`.

    Raises
    ------
    ConfigError
        The configured token limit exceeds that of the model, or no example can be encoded.
    """
    on_event(Stage(f"encoding {len(corpus.examples)} examples"))
    if loaded.images is not None:
        return [loaded.images.encode(example) for example in corpus.examples], {}
    assert loaded.tokenizer is not None, "a model without an image reader has a tokenizer"
    two_sided, start = _decoder(loaded)
    n_new = options.generate.max_new_tokens
    encoded = encode(
        corpus.examples,
        loaded.tokenizer,
        max_tokens=_room(options, loaded) - (0 if two_sided else n_new),
        on_too_long=options.tokens.too_long,
        stride=options.tokens.stride,
        add_special_tokens=options.tokens.special,
        has_target=two_sided and not n_new,
        decoder_start_token_id=start,
    )
    _check_ids([result for result in encoded if isinstance(result, EncodedExample)], loaded)
    skipped = {i: result.reason for i, result in enumerate(encoded) if isinstance(result, Skipped)}
    if len(skipped) == len(encoded):
        first = next(iter(skipped.values()))
        raise ConfigError(f"none of the {len(corpus.examples)} examples can be encoded: {first}.")
    examples = [
        without_tokens(corpus.examples[result.index], two_sided) if isinstance(result, Skipped) else result
        for result in encoded
    ]
    if options.tokens.too_long == "windows":
        on_event(Stage(f"windows of {plural(len(corpus.examples), 'text')}: {plural(len(examples), 'example')}"))
    return examples, skipped


def _check_ids(examples: list[EncodedExample], loaded: LoadedModel) -> None:
    """Check that the model has an embedding for every token.

    Raises
    ------
    ConfigError
        The tokenizer and the model do not belong together.
    """
    n_embeddings = getattr(loaded.model.get_input_embeddings(), "num_embeddings", None)
    if not isinstance(n_embeddings, int):
        return
    for example in examples:
        for tokens in (example.source, example.target):
            if tokens is None or not len(tokens):
                continue
            outside = np.flatnonzero((tokens.id < 0) | (tokens.id >= n_embeddings))
            if len(outside):
                raise ConfigError(
                    f"the tokenizer of {loaded.identity.name} gives {tokens.piece[outside[0]]!r} the id "
                    f"{tokens.id[outside[0]]}, but the model has {n_embeddings} embeddings. Use the model's own tokenizer."
                )


def _decoder(loaded: LoadedModel) -> tuple[bool, int | None]:
    """Return True if the model is an encoder–decoder, and the start token of its decoder."""
    two_sided = bool(getattr(loaded.model.config, "is_encoder_decoder", False))
    return two_sided, getattr(loaded.model.config, "decoder_start_token_id", None) if two_sided else None


def _room(options: EncodingOptions, loaded: LoadedModel) -> int:
    """Return the largest number of tokens of one sequence."""
    from .model_inputs import max_model_tokens

    assert loaded.tokenizer is not None
    limit = max_model_tokens(loaded.model, loaded.tokenizer)
    max_tokens, n_new = options.tokens.max_tokens, options.generate.max_new_tokens
    if max_tokens is not None and limit is not None and max_tokens > limit:
        raise ConfigError(
            f"tokens.max_tokens is {max_tokens}, but {loaded.identity.name} takes at most {limit} tokens. Lower tokens.max_tokens."
        )
    room = max_tokens or limit or 1 << 30
    if n_new >= room:
        raise ConfigError(
            f"generate.max_new_tokens is {n_new}, which leaves no room for a prompt: {loaded.identity.name} takes {room} "
            "tokens for prompt and continuation together. Lower generate.max_new_tokens."
        )
    return room


def continue_prompts(
    options: EncodingOptions,
    loaded: LoadedModel,
    examples: list[EncodedExample],
    indices: Iterable[int],
    on_event: OnEvent = lambda event: None,
) -> None:
    """Generate continuations of some examples and append them; for an encoder–decoder they become the targets."""
    from ..models.sources import load_configured
    from .generation import continue_example, end_tokens, generate_continuations, with_generated_target

    rows = list(indices)
    on_event(Stage(f"generating {len(rows)} continuations of at most {options.generate.max_new_tokens} tokens"))
    generator = load_configured(options.model, lm_head=True)
    assert generator.tokenizer is not None
    prompts = [examples[i].source for i in rows]
    continuations = generate_continuations(
        generator.model, generator.tokenizer, prompts, options.generate, options.limits
    )
    two_sided, start = _decoder(loaded)
    for i, ids in zip(rows, continuations, strict=True):
        if two_sided:
            examples[i] = with_generated_target(
                examples[i], ids, generator.tokenizer, start, end_tokens(generator.model)
            )
        else:
            examples[i] = continue_example(examples[i], ids, generator.tokenizer)
