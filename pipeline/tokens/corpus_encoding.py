"""Encode a corpus for one model: texts, images, or prompts with their generated continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headatlas.store.errors import BudgetError, ConfigError
from headatlas.store.schema.omissions import LISTED_NAMES, Omission, Omissions
from headatlas.store.schema.renamed import Renamed

from ..corpora.corpus import describe_corpus, read_corpus
from ..corpora.corpus_options import CorpusOptions
from ..corpora.examples import CorpusExample, EncodedExample, without_tokens
from ..corpora.records import Quarantined, Renaming
from ..models.chat_template import ChatTemplate
from ..models.model_options import ModelConfig
from ..progress import Event, Stage, format_bytes
from .batch_plan import BatchLimits
from .token_options import PROMPT_COLUMN, GenerateConfig, TokensConfig
from .tokenizer import Skipped, encode
from .windows import WINDOW_COLUMNS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.position_limit import TokenLimit
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
    """Omissions: data that the records of `examples` hold and the examples do not, and unreadable records by reason."""
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
            left_out.count("records", record.reason, record.location)
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
        The configured token limit exceeds that of the model, the corpus has a column whose name windows or
        continuations need, or no example can be encoded.
    """
    on_event(Stage(f"encoding {len(corpus.examples)} examples"))
    if loaded.images is not None:
        return [loaded.images.encode(example) for example in corpus.examples], {}
    assert loaded.tokenizer is not None, "a model without an image reader has a tokenizer"
    from ..models.position_limit import token_limit

    two_sided, start = _decoder(loaded)
    n_new = options.generate.max_new_tokens
    _check_columns(options, corpus.examples, two_sided=two_sided)
    conversations, refusals = render_conversations(corpus.examples, loaded.tokenizer, continued=n_new > 0)
    limit = token_limit(loaded.model, loaded.tokenizer)
    outcomes = encode(
        conversations,
        loaded.tokenizer,
        max_tokens=_room(options, limit, loaded.identity.name) - (0 if two_sided else n_new),
        on_too_long=options.tokens.too_long,
        stride=options.tokens.stride,
        add_special_tokens=options.tokens.special,
        has_target=two_sided and not n_new,
        decoder_start_token_id=start,
        skips=refusals,
    )
    _check_ids([outcome for outcome in outcomes if isinstance(outcome, EncodedExample)], loaded)
    skipped = {i: outcome.reason for i, outcome in enumerate(outcomes) if isinstance(outcome, Skipped)}
    examples = [
        without_tokens(conversations[outcome.index], two_sided) if isinstance(outcome, Skipped) else outcome
        for outcome in outcomes
    ]
    if n_new and not two_sided:
        from .generation import cannot_continue

        for i in range(len(examples)):
            if i not in skipped and (reason := cannot_continue(examples[i])):
                examples[i], skipped[i] = without_tokens(examples[i].example, two_sided), reason
    if len(skipped) == len(outcomes):
        first = next(iter(skipped.values()))
        raise ConfigError(f"none of the {len(corpus.examples)} examples can be encoded: {first}.")
    return examples, skipped


def _check_columns(options: EncodingOptions, examples: Sequence[CorpusExample], *, two_sided: bool) -> None:
    """Check that windows and continuations do not overwrite a column of the corpus."""
    names = set(WINDOW_COLUMNS) if options.tokens.too_long == "windows" else set()
    names |= {PROMPT_COLUMN} if options.generate.max_new_tokens and not two_sided else set()
    columns = dict.fromkeys(name for example in examples for name in example.columns)
    if reserved := [name for name in columns if name in names]:
        raise ConfigError(
            f"the corpus has columns named {', '.join(reserved)}, but with these settings headatlas writes its own "
            "columns of these names. Rename the fields in the corpus, or leave them out of corpus.columns (of "
            "corpus.metadata for treebanks)."
        )


def check_longest(loaded: LoadedModel, examples: Sequence[EncodedExample]) -> None:
    """Run the model on its longest example if that has more tokens than the configuration states.

    Raises
    ------
    UnsupportedModelError
        The model does not take so many tokens.
    """
    from ..models.position_limit import token_limit
    from .model_inputs import InputBuilder, check_length

    if loaded.tokenizer is None:
        return
    limit, longest = token_limit(loaded.model, loaded.tokenizer), max(examples, key=_n_tokens)
    if limit.stated is not None and _n_tokens(longest) > limit.stated:
        check_length(loaded.model, InputBuilder(loaded.model, loaded.tokenizer), longest)


def _n_tokens(example: EncodedExample) -> int:
    return max(len(example.source), 0 if example.target is None else len(example.target))


def encoding_notes(
    loaded: LoadedModel, examples: Sequence[EncodedExample], *, n_texts: int, n_examples: int
) -> Iterator[str]:
    """Yield the ways in which texts became tokens that a reader does not expect.

    `n_texts` is the number of texts of the corpus, and `n_examples` that of the examples that they became.
    """
    from ..models.position_limit import token_limit

    tokenizer = loaded.tokenizer
    if tokenizer is None:
        return
    limit = token_limit(loaded.model, tokenizer)
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        yield f"{kind} has no fast version; the characters of its tokens come from an alignment with the text"
    written = [example.written_special for example in examples if example.written_special]
    if written:
        names = ", ".join(list(dict.fromkeys(name for of_text in written for name in of_text))[:LISTED_NAMES])
        yield (
            f"{len(written)} texts spell {sum(map(len, written))} special tokens of the tokenizer ({names}); they are "
            "special tokens in the store too"
        )
    n_doubled = sum(map(_has_doubled_token, examples))
    if n_doubled:
        yield (
            f"{n_doubled} texts spell a special token that the tokenizer adds in the same place, so they have it twice. "
            "Remove it from the texts, or set tokens.special = false"
        )
    n_longer = 0 if limit.stated is None else sum(_n_tokens(example) > limit.stated for example in examples)
    if n_longer:
        yield f"{n_longer} examples have more than the {limit.stated} tokens that the model's configuration states"
    if n_examples != n_texts:
        yield (
            f"{n_texts} texts are {n_examples} examples, because long texts are cut into windows; "
            "corpus.sample, corpus.skip and corpus.max_examples count texts"
        )


def _has_doubled_token(example: EncodedExample) -> bool:
    """Return True if the first or the last token is added by the tokenizer, and written in the text beside it."""
    tokens = example.source
    return len(tokens) > 1 and any(
        tokens.id[added] == tokens.id[written] and tokens.is_added[added] and tokens.is_written_special[written]
        for added, written in ((0, 1), (-1, -2))
    )


def render_conversations(
    examples: Sequence[CorpusExample], tokenizer: PreTrainedTokenizerBase, *, continued: bool
) -> tuple[list[CorpusExample], dict[int, str]]:
    """Turn conversations into texts with the tokenizer's chat template. Return the reasons for failures by index.

    With `continued` the text ends where the assistant's answer begins.

    Raises
    ------
    ConfigError
        The tokenizer has no chat template, or the template exceeds a limit.
    """
    rows = [i for i, example in enumerate(examples) if example.messages]
    results, failures = list(examples), dict[int, str]()
    if not rows:
        return results, failures
    with ChatTemplate(tokenizer, add_generation_prompt=continued) as template:
        for i in rows:
            outcome = template.render(examples[i].messages)
            if isinstance(outcome, str):
                failures[i] = outcome
            else:
                results[i] = replace(examples[i], text=outcome[0], messages=outcome[1])
    return results, failures


def _check_ids(examples: list[EncodedExample], loaded: LoadedModel) -> None:
    """Check that the model has an embedding for every token.

    Raises
    ------
    ConfigError
        The tokenizer and the model do not belong together.
    """
    from ..models.position_limit import count_embeddings

    n_embeddings = count_embeddings(loaded.model)
    if n_embeddings is None:
        return
    for example in examples:
        for tokens in (example.source, example.target):
            if tokens is None or not len(tokens):
                continue
            outside = np.flatnonzero((tokens.id < 0) | (tokens.id >= n_embeddings))
            if len(outside):
                raise ConfigError(
                    f"the tokenizer of {loaded.identity.name} gives {tokens.piece[outside[0]]!r} the id "
                    f"{tokens.id[outside[0]]}, but the model has {n_embeddings} embeddings. Tokenizer and weights are "
                    "of different versions: download both again, or call resize_token_embeddings and save the model."
                )


def _decoder(loaded: LoadedModel) -> tuple[bool, int | None]:
    """Return True if the model is an encoder–decoder, and the start token of its decoder."""
    two_sided = bool(getattr(loaded.model.config, "is_encoder_decoder", False))
    return two_sided, getattr(loaded.model.config, "decoder_start_token_id", None) if two_sided else None


def _room(options: EncodingOptions, limit: TokenLimit, name: str) -> int:
    """Return the largest number of tokens of one sequence."""
    max_tokens, n_new = options.tokens.max_tokens, options.generate.max_new_tokens
    if max_tokens is not None and limit.positions is not None and max_tokens > limit.positions:
        raise ConfigError(
            f"tokens.max_tokens is {max_tokens}, but {name} has positions for {limit.positions} tokens. "
            f"Set tokens.max_tokens to at most {limit.positions}."
        )
    room = max_tokens or limit.default or 1 << 30
    if n_new >= room:
        more = "" if room == limit.positions else ", or raise tokens.max_tokens"
        raise ConfigError(
            f"generate.max_new_tokens is {n_new}, which leaves no room for a prompt: prompt and continuation together "
            f"have at most {room} tokens. Lower generate.max_new_tokens{more}."
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
    from .generation import continue_example, end_tokens, generate_continuations, with_generated_target

    rows = list(indices)
    on_event(Stage(f"generating {len(rows)} continuations of at most {options.generate.max_new_tokens} tokens"))
    generator, tokenizer = loaded.generator, loaded.tokenizer
    assert generator is not None, "a job that generates text loads the language model"
    assert tokenizer is not None, "a language model has a tokenizer"
    prompts = [examples[i].source for i in rows]
    continuations = generate_continuations(generator, tokenizer, prompts, options.generate, options.limits)
    two_sided, start = _decoder(loaded)
    for i, ids in zip(rows, continuations, strict=True):
        if two_sided:
            examples[i] = with_generated_target(examples[i], ids, tokenizer, start, end_tokens(generator))
        else:
            examples[i] = continue_example(examples[i], ids, tokenizer)
