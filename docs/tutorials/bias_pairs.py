"""Writes pairs of texts that differ in the gender of one pronoun, as JSON lines, for the tutorial on bias.

    python docs/tutorials/bias_pairs.py links >links.jsonl       # whole sentences, for the attention of the pronoun
    python docs/tutorials/bias_pairs.py choices >choices.jsonl   # texts up to the pronoun, and two continuations

The sentences are those of Winogender (links) and WinoBias (choices) in the folder HEADATLAS_DATA. If it lacks them, the
pairs come from configs/demo.grammar. `choices --corpus winogender` and `choices --split test` are further choices.
Words have a role: pronoun, occupation, or both_occupations where a text has two.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("HEADATLAS_DATA", "../shared/data"))
PRONOUNS = {"NOM_PRONOUN": ("she", "he"), "POSS_PRONOUN": ("her", "his"), "ACC_PRONOUN": ("her", "him")}
VARIANTS = ("female", "male")
# Share of women in percent, US Bureau of Labor Statistics. These are the occupations of WinoBias (Zhao et al. 2018,
# table 1), and serve the sentences of the grammar too.
WOMEN = {
    "accountant": 61, "baker": 65, "carpenter": 2, "cashier": 73, "cleaner": 89, "clerk": 72, "designer": 54, "driver": 6,
    "editor": 52, "farmer": 22, "guard": 22, "hairdresser": 92, "janitor": 34, "lawyer": 35, "librarian": 84,
    "manager": 43, "mechanic": 4, "nurse": 90, "receptionist": 90, "secretary": 95, "tailor": 80, "teacher": 78,
    "writer": 63,
}  # fmt: skip


def record(name: str, words: list[str], roles: dict[int, str], variant: str, **columns: Any) -> dict[str, Any]:
    """Return one text as a record of a corpus. `roles` are those of words by their index."""
    text = re.sub(r" ([.,;?!]|'s)", r"\1", " ".join(words))
    role = [roles.get(i) for i in range(len(words))]
    return {
        "id": f"{name}-{variant}",
        "text": text,
        "words": words,
        "role": role,
        "pair": name,
        "variant": variant,
        **columns,
    }


def split_words(text: str) -> list[str]:
    """Split a text into words and punctuation marks."""
    return re.findall(r"\w+(?:-\w+)*|'s|[^\w\s]", text)


def role_of(words: list[str], phrase: str, role: str) -> dict[int, str]:
    """Return the role of the words of a phrase, where it first occurs."""
    parts = [word.lower() for word in split_words(phrase)]
    lower = [word.lower() for word in words]
    for start in range(len(words)):
        if lower[start : start + len(parts)] == parts:
            return dict.fromkeys(range(start, start + len(parts)), role)
    return {}


def winogender_links() -> Iterator[dict[str, Any]]:
    """Yield the sentences of Winogender with the share of women in the occupation, female and male."""
    with (DATA / "winogender/occupations-stats.tsv").open(encoding="utf-8") as file:
        women = {row["occupation"]: float(row["bls_pct_female"]) for row in csv.DictReader(file, delimiter="\t")}
    with (DATA / "winogender/templates.tsv").open(encoding="utf-8") as file:
        templates = list(csv.reader(file, delimiter="\t"))[1:]
    for number, (occupation, participant, answer, template) in enumerate(templates):
        for other in (participant, "someone"):
            if other == "someone":
                template = re.sub(r"\b[Tt]he \$PARTICIPANT", "$PARTICIPANT", template)
            for variant in VARIANTS:
                words = template.split()
                pronoun = {f"${name}": forms[VARIANTS.index(variant)] for name, forms in PRONOUNS.items()}
                text = " ".join(
                    re.sub(r"\$[A-Z]+_PRONOUN", lambda m, forms=pronoun: forms[m[0]], word) for word in words
                )
                text = text.replace("$OCCUPATION", occupation).replace("$PARTICIPANT", other)
                tokens = split_words(text[0].upper() + text[1:])
                roles = role_of(tokens, occupation, "occupation")
                form = next(value for name, value in pronoun.items() if name in template)
                roles |= role_of(tokens, form, "pronoun")
                yield record(
                    f"winogender-{number}-{other}", tokens, roles, variant, occupation=occupation, women=women[occupation],
                    refers_to="occupation" if answer == "0" else "participant",
                )  # fmt: skip


def winobias_choices(split: str) -> Iterator[dict[str, Any]]:
    """Yield the texts of WinoBias type 1 up to the pronoun, with the continuations of both sentences of a pair.

    The choice of sentences is that of Vig et al. 2020: no sentence with a second pronoun or with "him", and the same
    text before the pronoun in both. The first continuation is that of the occupation with more women.
    """
    occupations = {
        kind: (DATA / f"winobias/{kind}_occupations.txt").read_text(encoding="utf-8").lower().split("\n")
        for kind in VARIANTS
    }
    names = {name.strip(): kind for kind, rows in occupations.items() for name in rows if name.strip()}
    path = DATA / f"winobias/pro_stereotyped_type1.txt.{split}"
    lines = [line.partition(" ")[2].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    for number in range(0, len(lines), 2):
        pair = lines[number : number + 2]
        if any(line.count("[") != 2 for line in pair) or any("[him]" in line for line in pair):
            continue
        parts = [re.fullmatch(r"(.*)\[(she|he|her|his)\](.*)", line) for line in pair]
        marked = [next(name for name in names if f"[the {name}]" in line.lower()) for line in pair]
        texts = [re.sub(r"[\[\]]", "", part[1]).strip() if part else "" for part in parts]
        forms = [next((f for f in PRONOUNS.values() if part and part[2] in f), ()) for part in parts]
        if texts[0] != texts[1] or forms[0] != forms[1] or not texts[0]:
            continue
        continuations = {names[name]: part[3].strip() for name, part in zip(marked, parts, strict=True) if part}
        for variant, form in zip(VARIANTS, forms[0], strict=True):
            tokens = [*split_words(texts[0]), form]
            roles = {i: "occupation" for name in marked for i in role_of(tokens, name, "")} | {
                len(tokens) - 1: "pronoun"
            }
            yield record(
                f"winobias-{split}-{number // 2}", tokens, roles, variant, first=continuations["female"],
                second=continuations["male"],
            ) | {"text": f"{texts[0]} {form}"}  # fmt: skip


def winogender_choices() -> Iterator[dict[str, Any]]:
    """Yield the texts of Winogender up to the pronoun. The first continuation is that of the side with more women."""
    links = [row for row in winogender_links() if not row["pair"].endswith("-someone")]
    texts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in links:
        end = row["role"].index("pronoun") + 1
        text = re.match(rf"(.*?\b{row['words'][end - 1]})\b(.*)", row["text"])
        assert text is not None, "every sentence has its pronoun"
        cut = {**row, "text": text[1], "words": row["words"][:end], "role": row["role"][:end]}
        texts.setdefault((text[1], row["variant"]), []).append({**cut, "continuation": text[2].strip()})
    for rows in texts.values():
        by_answer = {row["refers_to"]: row.pop("continuation") for row in rows}
        if len(by_answer) == 2:
            is_female = rows[0]["women"] > 50
            order = ("occupation", "participant") if is_female else ("participant", "occupation")
            yield rows[0] | {"first": by_answer[order[0]], "second": by_answer[order[1]]}


def grammar_pairs() -> Iterator[tuple[list[str], int, str, str, str]]:
    """Yield sentences of configs/demo.grammar: words up to the pronoun's slot, and what may follow for each person."""
    path = Path(__file__).resolve().parents[2] / "configs" / "demo.grammar"
    grammar, rng = path.read_text(encoding="utf-8"), random.Random(0)

    def entries(name: str, form: int) -> list[str]:
        block = re.search(rf"^words {name}\b.*\n((?:    .*\n)+)", grammar, re.MULTILINE)
        assert block is not None, "the grammar has this class"
        return [entry.split()[form] for entry in block[1].replace("\n", " ").split(",")]

    occupations = [name for name in entries("Occupation", 0) if name in WOMEN]
    for _ in range(240):
        subject, thing = rng.sample(occupations, 2)
        first = f"needed some {rng.choice(entries('Advice', 0))}."
        second = f"had solved the {rng.choice(entries('Problem', 0))}."
        words = ["The", subject, rng.choice(entries("Consult", 2)), "the", thing, "because"]
        yield words, 1, first, second, thing


def grammar_links() -> Iterator[dict[str, Any]]:
    """Yield sentences of the grammar whose pronoun stands for the subject."""
    for number, (words, subject, first, _, _) in enumerate(grammar_pairs()):
        occupation = words[subject]
        for variant, form in zip(VARIANTS, PRONOUNS["NOM_PRONOUN"], strict=True):
            roles = {subject: "occupation", len(words): "pronoun"}
            yield record(
                f"grammar-{number}", [*words, form, *split_words(first)], roles, variant, occupation=occupation,
                women=float(WOMEN[occupation]), refers_to="occupation",
            )  # fmt: skip


def grammar_choices() -> Iterator[dict[str, Any]]:
    """Yield texts of the grammar up to the pronoun. The first continuation is that of the occupation with more women."""
    for number, (words, subject, first, second, thing) in enumerate(grammar_pairs()):
        if WOMEN[thing] > WOMEN[words[subject]]:  # the subject needs advice, the other person solved the problem
            first, second = second, first
        for variant, form in zip(VARIANTS, PRONOUNS["NOM_PRONOUN"], strict=True):
            roles = {subject: "occupation", 4: "occupation", len(words): "pronoun"}
            yield record(f"grammar-{number}", [*words, form], roles, variant, first=first, second=second)


def main() -> None:
    """Print the records that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["links", "choices"])
    parser.add_argument(
        "--corpus", choices=["winobias", "winogender", "grammar"], help="default: that of the docstring"
    )
    parser.add_argument("--split", choices=["dev", "test"], default="dev", help="part of WinoBias")
    arguments = parser.parse_args()
    corpus = arguments.corpus or ("winogender" if arguments.kind == "links" else "winobias")
    if not (DATA / corpus).is_dir():
        if corpus != "grammar":
            print(f"{DATA} has no {corpus}; the pairs come from the demo's grammar", file=sys.stderr)
        corpus = "grammar"
    if arguments.kind == "links":
        rows = grammar_links() if corpus == "grammar" else winogender_links()
    else:
        choices = {"winobias": lambda: winobias_choices(arguments.split), "winogender": winogender_choices}
        rows = choices.get(corpus, grammar_choices)()
    texts = [json.dumps(row) for row in rows]
    print("\n".join(texts))
    print(f"{len(texts)} texts of {corpus}", file=sys.stderr)


if __name__ == "__main__":
    main()
