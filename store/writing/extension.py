"""Extension of a store: the same job adds the records of a corpus that grew, or of another corpus."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError, located
from ..files.manifest import Manifest
from ..schema.corpus_parts import CorpusPart
from ..schema.traces import TraceSpec
from .job_identity import check_same, check_settings
from .store_writer import StoreWriter

_GROWING_OPTIONS = ("skip", "max_examples")
_LABELS = ("the store there was made with", "this job")


def check_extension(existing: Manifest, provenance: dict[str, Any]) -> None:
    """Check that a job may add its corpus to an existing store.

    All settings must agree. The corpus may be another one, or one of the store with other limits or more records.

    Raises
    ------
    ConfigError
        A setting differs, or the store was made from other stores. The message names the difference.
    """
    if existing.provenance.get("made_from") is not None:
        raise ConfigError(
            "the store was made from other stores (merge or convert), so no job continues it. Extend the original "
            "store, or run the new records into a store of their own and join both: headatlas merge --append."
        )
    check_settings(existing.provenance, provenance)
    corpus = provenance["corpus"]
    for part in existing.parts:
        if part.name != corpus["name"]:
            continue
        options, new_options = (
            {name: value for name, value in document.get("options", {}).items() if name not in _GROWING_OPTIONS}
            for document in (part.corpus, corpus)
        )
        advice = "An extension may change only corpus.skip and corpus.max_examples. Use another output folder."
        check_same("corpus", options, new_options, *_LABELS, advice)
        if options.get("sample") is not None and part.corpus.get("sha256") != corpus["sha256"]:
            raise ConfigError(
                f"corpus.sample draws from the whole of {part.name}, and the file has changed since. Use another output "
                "folder."
            )


def extend_store(
    path: str | os.PathLike[str],
    part: CorpusPart | None,
    *,
    spec: TraceSpec,
    container: str,
    on_step: Callable[[str], None] = lambda step: None,
) -> StoreWriter:
    """Open an existing store to write planned segments, after committing the plan of `part`.

    The examples of `part` follow those that the store plans so far. If another writer committed the same plan, both
    write its segments.

    Raises
    ------
    ConfigError
        The specifications differ, or another writer extended the store by other examples in the meantime.
    """
    with located(os.fspath(path)):
        writer = StoreWriter(path, container=container, threads=None, on_step=on_step)
        writer.target.remove_drafts()
        before, after = (value.model_dump(mode="json") for value in (writer.manifest.spec, spec))
        check_same("spec", before, after, *_LABELS, "Use another output folder, or the job file that made it.")
        if part is not None:
            with writer.target.private() as private:
                newest = writer.change(private, lambda manifest: _extended(manifest, part)).extensions[-1:]
            if [row.model_copy(update={"created": part.created}) for row in newest] != [part]:
                raise ConfigError(
                    "another writer extended the store in the meantime. Nothing was lost; run the same command again."
                )
    return writer


def _extended(manifest: Manifest, part: CorpusPart) -> dict[str, Any] | None:
    """Return the changed fields of a manifest with one more part; None if the part does not follow its last one."""
    if (manifest.n_segments_planned, manifest.n_examples_planned) != (part.first_segment, part.first_example):
        return None
    return {
        "extensions": (*manifest.extensions, part),
        "n_segments_planned": part.first_segment + part.n_segments,
        "n_examples_planned": part.first_example + part.n_examples,
    }
