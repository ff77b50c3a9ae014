"""Writes the texts of the tutorial on relevant heads, as JSON lines or as CoNLL-U.

    python docs/tutorials/relevant_texts.py copies >copies.jsonl       # random words, and the beginning of their copy
    python docs/tutorials/relevant_texts.py acronyms >acronyms.jsonl   # sentences that introduce an acronym
    python docs/tutorials/relevant_texts.py relations >relations.conllu  # sentences with a subject before its verb
    python docs/tutorials/relevant_texts.py names >names.jsonl         # passages with a pronoun and two names
    python docs/tutorials/relevant_texts.py pairs >pairs.jsonl         # premises with their hypotheses

Acronyms, names, pairs and relations come from the folder HEADATLAS_DATA (acronyms; GAP; ConjNLI and MED; UD English EWT). If it lacks them, a few
sentences of the same form are written from the words of configs/demo.grammar.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("HEADATLAS_DATA", "../shared/data"))
N_TEXTS = 20
N_SENTENCES = 40
N_WORDS, N_COPIED, N_NEXT = 20, 6, 8
"""Random words of a text, words of their copy that the text shows, and words after these that the model predicts."""


def grammar_words(name: str) -> list[str]:
    """Return the first forms of a class of words of configs/demo.grammar."""
    grammar = (Path(__file__).resolve().parents[2] / "configs" / "demo.grammar").read_text(encoding="utf-8")
    block = re.search(rf"^words {name}\b.*\n((?:    .*\n)+)", grammar, re.MULTILINE)
    assert block is not None, "the grammar has this class"
    return [entry.split()[0] for entry in block[1].replace("\n", " ").split(",")]


def rows(path: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a table of HEADATLAS_DATA."""
    with (DATA / path).open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def copies() -> Iterator[dict[str, Any]]:
    """Yield random words in random order, and the beginning of the same words again. `rest` are the words that follow."""
    rng = random.Random(0)
    words = sorted({*grammar_words("Occupation"), *grammar_words("Thing"), *grammar_words("Place")})
    for number in range(N_TEXTS):
        drawn = rng.sample(words, N_WORDS)
        text = [*drawn, *drawn[:N_COPIED]]
        rest = drawn[N_COPIED : N_COPIED + N_NEXT]
        yield {"id": f"copy-{number}", "text": " ".join(text), "rest": " ".join(rest)}


def acronyms() -> Iterator[dict[str, Any]]:
    """Yield sentences with an acronym after its long form, the shortest first."""
    if (DATA / "acronyms").is_dir():
        texts = [row["text"] for row in rows("acronyms/acronyms.tsv")]
    else:
        kinds = zip(grammar_words("Company"), grammar_words("Institution"), strict=False)
        names = [f"{company} {institution.title()}" for company, institution in kinds]
        texts = [f"The {name} ({''.join(w[0] for w in name.split())}) opened an office in Oslo." for name in names]
    for number, text in enumerate(sorted(dict.fromkeys(texts), key=len)[:N_TEXTS]):
        yield {"id": f"acronym-{number}", "text": text}


def names() -> Iterator[dict[str, Any]]:
    """Yield short passages in which a pronoun stands for one of two names. Words have the role pronoun, right or wrong."""
    if not (DATA / "gap").is_dir():
        people, things = grammar_words("Name"), grammar_words("Thing")
        for number, (right, wrong) in enumerate(zip(people, reversed(people), strict=True)):
            if right != wrong:
                words = [right, "met", wrong, "and", "said", "that", "she", "had", "lost", "the", things[number], "."]
                roles = ["right", None, "wrong", None, None, None, "pronoun", *[None] * 5]
                yield {"id": f"name-{number}", "text": " ".join(words), "words": words, "role": roles}
        return
    for row in sorted(rows("gap/gap-development.tsv"), key=lambda row: len(row["Text"])):
        is_first = row["A-coref"] == "TRUE"
        if is_first == (row["B-coref"] == "TRUE"):
            continue
        spans = [("right", "A" if is_first else "B"), ("wrong", "B" if is_first else "A"), ("pronoun", "Pronoun")]
        words, roles = [], []
        for match in re.finditer(r"\w+|[^\w\s]", row["Text"]):
            role = next(
                (
                    name
                    for name, field in spans
                    if int(row[f"{field}-offset"]) <= match.start() < int(row[f"{field}-offset"]) + len(row[field])
                ),
                None,
            )
            words.append(match[0])
            roles.append(role)
        yield {"id": row["ID"], "text": row["Text"], "words": words, "role": roles}


def pairs() -> Iterator[dict[str, Any]]:
    """Yield pairs of sentences, in turn from ConjNLI and MED."""
    if not ((DATA / "conjnli").is_dir() and (DATA / "med-nli").is_dir()):
        for number, thing in enumerate(grammar_words("Thing")):
            first = f"A {grammar_words('Occupation')[number]} bought a new {thing}."
            yield {
                "id": f"pair-{number}",
                "text": first,
                "text_pair": f"Somebody bought a {thing}.",
                "label": "entailment",
            }
        return
    conj = [
        {"text": row["Premise"], "text_pair": row["Hypothesis"], "label": row["Label"]}
        for row in rows("conjnli/conj_dev.tsv")
    ]
    med = [
        {"text": row["sentence1"], "text_pair": row["sentence2"], "label": row["gold_label"]}
        for row in rows("med-nli/MED.tsv")
    ]
    rng = random.Random(0)
    for number, both in enumerate(zip(rng.sample(conj, N_TEXTS), rng.sample(med, N_TEXTS), strict=True)):
        for corpus, record in zip(("conjnli", "med"), both, strict=True):
            yield {"id": f"{corpus}-{number}", **record, "corpus": corpus}


def relations() -> Iterator[str]:
    """Yield sentences of 8 to 16 words with a subject before its verb, as CoNLL-U."""
    path = DATA / "ud-english-ewt/en_ewt-ud-dev.conllu"
    blocks = path.read_text(encoding="utf-8").split("\n\n") if path.is_file() else grammar_sentences()
    n_sentences = 0
    for block in blocks:
        words = [line.split("\t") for line in block.splitlines() if re.match(r"\d+\t", line)]
        if 8 <= len(words) <= 16 and any(w[7] == "nsubj" and int(w[0]) < int(w[6]) for w in words):
            yield block + "\n"
            n_sentences += 1
        if n_sentences == N_SENTENCES:
            return


def grammar_sentences() -> Iterator[str]:
    """Yield the sentences of the demo's grammar as CoNLL-U."""
    from headatlas.pipeline.config import load_config
    from headatlas.pipeline.tokens.corpus_encoding import open_corpus

    for example in open_corpus(load_config("demo").corpus).examples:
        columns = example.word_columns
        lines = [f"# sent_id = {example.id}"]
        for i, word in enumerate(example.words):
            governor = int(str(columns["head"][i])) + 1
            form = example.text[word.char_start : word.char_end]
            fields = [
                str(i + 1),
                form,
                "_",
                str(columns["upos"][i]),
                "_",
                "_",
                str(governor),
                str(columns["deprel"][i]),
            ]
            lines.append("\t".join([*fields, "_", "_"]))
        yield "\n".join(lines)


def main() -> None:
    """Print the records that the command line names."""
    kinds: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "copies": copies, "acronyms": acronyms, "names": names, "pairs": pairs,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*kinds, "relations"])
    kind = parser.parse_args().kind
    texts = [*relations()] if kind == "relations" else [json.dumps(record) for record in kinds[kind]()]
    print("\n".join(texts))
    print(f"{len(texts)} texts", file=sys.stderr)


if __name__ == "__main__":
    main()
