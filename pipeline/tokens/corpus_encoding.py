"""Encode a corpus for one model: texts as tokens, prompts with the text the model generates after them, or images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headatlas.store.errors import ConfigError

from ..corpora.corpus import describe_corpus, read_corpus
from ..corpora.corpus_options import CorpusOptions
from ..corpora.examples import CorpusExample, EncodedExample, without_tokens
from ..corpora.records import Quarantined
from ..models.model_options import ModelConfig
from ..progress import Event, Stage
from .batch_plan import BatchLimits
from .token_options import GenerateConfig, TokensConfig
from .tokenizer import Skipped, encode

if TYPE_CHECKING:
    from ..models.sources import LoadedModel

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class EncodingOptions:
    """The settings of a job that decide its token sequences; `limits` are those of the batches that generate text."""

    model: ModelConfig
    tokens: TokensConfig
    generate: GenerateConfig
    limits: BatchLimits


@dataclass(frozen=True)
class Corpus:
    """The contents of a corpus: examples, the records that could not be read, and a description that identifies it."""

    examples: list[CorpusExample]
    quarantined: list[Quarantined]
    description: dict[str, Any]


def open_corpus(options: CorpusOptions, on_event: OnEvent = lambda event: None) -> Corpus:
    """Read a whole corpus.

    Raises
    ------
    ConfigError
        It cannot be read, or holds no example.
    """
    on_event(Stage(f"reading corpus {options.path}"))
    quarantined, examples = list[Quarantined](), list[CorpusExample]()
    for record in read_corpus(options):
        if isinstance(record, Quarantined):
            quarantined.append(record)
        else:
            examples.append(record)
    if not examples:
        first = f"; the first: {quarantined[0].reason}" if quarantined else ""
        raise ConfigError(f"{options.path} holds no example ({len(quarantined)} records could not be read{first}).")
    return Corpus(examples, quarantined, {**describe_corpus(options, examples), "n_quarantined": len(quarantined)})


def encode_corpus(
    options: EncodingOptions, loaded: LoadedModel, corpus: Corpus, on_event: OnEvent = lambda event: None
) -> tuple[list[EncodedExample], dict[int, str]]:
    """The examples of a job, and by index why some have no tokens.

    Raises
    ------
    ConfigError
        More tokens are asked for than the model takes, or no example is left.
    """
    on_event(Stage(f"encoding {len(corpus.examples)} examples"))
    if loaded.images is not None:
        return [loaded.images.encode(example) for example in corpus.examples], {}
    assert loaded.tokenizer is not None, "what reads no images reads text"
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
    skipped = {i: result.reason for i, result in enumerate(encoded) if isinstance(result, Skipped)}
    if len(skipped) == len(encoded):
        first = next(iter(skipped.values()))
        raise ConfigError(f"none of the {len(corpus.examples)} examples can be encoded: {first}.")
    examples = [
        without_tokens(corpus.examples[result.index], two_sided) if isinstance(result, Skipped) else result
        for result in encoded
    ]
    if n_new:
        _continue_all(options, loaded, examples, skipped, on_event)
    return examples, skipped


def _decoder(loaded: LoadedModel) -> tuple[bool, int | None]:
    """Whether the model has a decoder beside its encoder, and what that reads first."""
    two_sided = bool(getattr(loaded.model.config, "is_encoder_decoder", False))
    return two_sided, getattr(loaded.model.config, "decoder_start_token_id", None) if two_sided else None


def _room(options: EncodingOptions, loaded: LoadedModel) -> int:
    """How many tokens one sequence may have."""
    from .model_inputs import max_model_tokens

    assert loaded.tokenizer is not None
    limit = max_model_tokens(loaded.model, loaded.tokenizer)
    max_tokens, n_new = options.tokens.max_tokens, options.generate.max_new_tokens
    if max_tokens is not None and limit is not None and max_tokens > limit:
        raise ConfigError(f"tokens.max_tokens is {max_tokens}, but {loaded.identity.name} takes at most {limit}.")
    room = max_tokens or limit or 1 << 30
    if n_new >= room:
        raise ConfigError(
            f"generate.max_new_tokens is {n_new}, which leaves no room for a prompt: {loaded.identity.name} takes {room} "
            "tokens, prompt and continuation together."
        )
    return room


def _continue_all(
    options: EncodingOptions,
    loaded: LoadedModel,
    examples: list[EncodedExample],
    skipped: dict[int, str],
    on_event: OnEvent,
) -> None:
    """Put what the model writes behind every prompt (or, of an encoder–decoder, as its target) in its place."""
    from ..models.sources import load_configured
    from .generation import answer_example, continue_example, end_tokens, write_continuations

    rows = [i for i in range(len(examples)) if i not in skipped]
    on_event(Stage(f"writing {len(rows)} continuations of at most {options.generate.max_new_tokens} tokens"))
    writer = load_configured(options.model, lm_head=True)
    assert writer.tokenizer is not None
    prompts = [examples[i].source for i in rows]
    written = write_continuations(writer.model, writer.tokenizer, prompts, options.generate, options.limits)
    two_sided, start = _decoder(loaded)
    for i, ids in zip(rows, written, strict=True):
        if two_sided:
            examples[i] = answer_example(examples[i], ids, writer.tokenizer, start, end_tokens(writer.model))
        else:
            examples[i] = continue_example(examples[i], ids, writer.tokenizer)
