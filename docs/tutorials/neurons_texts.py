"""Writes 59 texts of more than 256 tokens into a new folder, for the tutorial on neurons.

    python docs/tutorials/neurons_texts.py texts

They are the beginnings of chapters of novels from HEADATLAS_DATA. If it has no prose, they are sentences of the demo's
grammar, one after the other.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

DATA = Path(os.environ.get("HEADATLAS_DATA", "../shared/data"))
N_TEXTS = 59
N_CHARACTERS = 1_600
N_SENTENCES = 24


def chapters() -> dict[str, str]:
    """Return the beginnings of chapters, evenly chosen, by name."""
    paths = sorted((DATA / "prose").glob("*--*.txt"))
    chosen = [paths[number * len(paths) // N_TEXTS] for number in range(N_TEXTS)]
    return {path.stem: path.read_text(encoding="utf-8")[:N_CHARACTERS] for path in chosen}


def grammar_texts() -> dict[str, str]:
    """Return texts of sentences of the demo's grammar, by name."""
    from headatlas.pipeline.config import load_config
    from headatlas.pipeline.tokens.corpus_encoding import open_corpus

    sentences = [row.text for row in open_corpus(load_config("demo").corpus).examples][: N_TEXTS * N_SENTENCES]
    return {f"grammar-{i:02}": " ".join(sentences[i::N_TEXTS]) for i in range(N_TEXTS)}


def main() -> None:
    """Write the texts into the folder that the command line names."""
    has_prose = (DATA / "prose").is_dir()
    folder = Path(sys.argv[1])
    folder.mkdir()
    for name, text in (chapters() if has_prose else grammar_texts()).items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    print(
        f"{N_TEXTS} texts: {'chapters of novels' if has_prose else f'{DATA} has no prose, so sentences of a grammar'}"
    )


if __name__ == "__main__":
    main()
