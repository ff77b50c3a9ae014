"""Examples of a store as a model reads them: the stored token ids, with texts, words and annotations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from headatlas.store.errors import ConfigError
from headatlas.store.reading.snapshot import Snapshot
from headatlas.store.schema.token_table import Column, TokenTable

from ...corpora.examples import CorpusExample, EncodedExample, TokenSequence, Word

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...models.sources import LoadedModel


def stored_examples(store: Snapshot) -> Iterator[EncodedExample]:
    """Yield the examples of a store in order. Skipped ones have no tokens. Added annotations are among the columns.

    Raises
    ------
    CorruptSegmentError
        A segment cannot be read.
    """
    for segment in store.segments:
        tables = {name: segment.tokens(name) for name in segment.spec.sequences}
        texts = {name: segment.optional_texts(name) for name in ("text_pair", "target_text")}
        columns = {name: _values(column) for name, column in segment.columns().items()}
        for row, (name, text) in enumerate(zip(segment.ids(), segment.texts(), strict=True)):
            source = tables["source"]
            words = slice(int(source.word_offset[row]), int(source.word_offset[row + 1]))
            example = CorpusExample(
                name,
                text,
                texts["text_pair"][row],
                texts["target_text"][row],
                tuple(
                    Word(*word)
                    for word in zip(
                        source.word_char_start[words].tolist(),
                        source.word_char_end[words].tolist(),
                        source.word_second[words].tolist(),
                        strict=True,
                    )
                ),
                {column: values[words].to_list() for column, values in source.word_columns.items()},
                {column: values[row] for column, values in columns.items()},
            )
            target = _sequence(tables["target"], row) if "target" in tables else None
            yield EncodedExample(example, _sequence(source, row), target)


def check_store(store: Snapshot, loaded: LoadedModel, *, with_tokens: bool = True) -> None:
    """Check that a model and its tokenizer are those of a store.

    Parameters
    ----------
    with_tokens
        Also check that the tokenizer has the stored pieces for the stored token ids, and that the data type is the same.

    Raises
    ------
    ConfigError
        They differ. The message names the first difference of each kind.
    """
    provenance, identity = store.manifest.provenance, loaded.identity.to_dict()
    stored = provenance.get("model") or {}
    differences: list[str] = []
    if stored.get("model_type") != identity["model_type"]:
        differences.append(f"model_type is {stored.get('model_type')} in the store and {identity['model_type']} here")
    before, after = stored.get("files") or {}, identity["files"]
    for label, names in (
        ("differ", [name for name in before if name in after and before[name] != after[name]]),
        ("are missing here", [name for name in before if name not in after]),
        ("are not those of the store", [name for name in after if name not in before]),
    ):
        if names:
            differences.append(f"files {label}: {', '.join(sorted(names))}")
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    if with_tokens and provenance.get("dtype") not in (None, dtype):
        differences.append(f"the data type is {provenance['dtype']} in the store and {dtype} here")
    if with_tokens and not differences and loaded.tokenizer is not None:
        differences += _piece_differences(store, loaded.tokenizer)
    if differences:
        raise ConfigError(
            f"{store.location} was made with another model ({stored.get('name')}) than this one ({identity['name']}): "
            f"{'; '.join(differences)}. Name the model of the store with --set model.source=SOURCE."
        )


def _piece_differences(store: Snapshot, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the first token id for which a tokenizer has another piece than the store."""
    checked: set[tuple[int, str]] = set()
    for segment in store.segments:
        for name in segment.spec.sequences:
            table = segment.tokens(name)
            pieces = table.columns["piece"]
            assert pieces.values is not None, "pieces are text"
            rows = np.unique(np.stack([table.id, pieces.data]), axis=1).T.tolist()
            entries = {(token, pieces.values[code]) for token, code in rows if code >= 0} - checked
            checked |= entries
            for token, piece in sorted(entries):
                if token >= len(tokenizer) or tokenizer.convert_ids_to_tokens(token) != piece:
                    yield f"token {token} is {piece!r} in the store and not in the tokenizer {type(tokenizer).__name__}"
                    return


def _sequence(table: TokenTable, row: int) -> TokenSequence:
    rows = slice(int(table.token_offset[row]), int(table.token_offset[row + 1]))
    texts = {name: tuple(str(text) for text in table.columns[name][rows].to_list()) for name in ("text", "piece")}
    columns = {name: column.data[rows] for name, column in table.columns.items() if not column.is_text}
    return TokenSequence(
        table.id[rows], table.word[rows], table.char_start[rows], table.char_end[rows], table.flags[rows],
        texts["text"], texts["piece"], columns,
    )  # fmt: skip


def _values(column: Column) -> list[Any]:
    """Return the rows of a column of examples, None where they are missing."""
    return [None if value is None or value != value else value for value in column.to_list()]
