"""`ComparisonChoices`: what is compared in the compare view, and the card with the choices of A and B."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headatlas.store.queries.minimal_pairs import Contrast
from headatlas.store.reading.example import Example

from ..components.background import Check, Newest
from ..components.comparison import Comparison, ComparisonFrame
from ..data.example_reader import Reader
from ..data.store_data import DataSource
from ..figures.figure_parts import Caption
from ..frames.alignment import HeadChange
from ..frames.view_frames import head_name
from ..theme.token_labels import visible
from .compared_sides import Side, pair_scopes
from .example_view import ExampleView

MATCHES = 20
"""Most examples that a search for B lists."""
_LISTS = {
    "examples": "Heads that change",
    "heads": "Heads least similar to A",
    "models": "Heads of B most similar to A",
}


class ComparisonChoices(ExampleView):
    """Base of the compare view: the kind of comparison, B, and the messages of the card of choices."""

    choices: Comparison
    finds: Newest
    _sides: tuple[Side, Side] | None
    _change_list: tuple[Any, list[HeadChange]]
    _contrast: tuple[Any, Contrast | None, str]
    _matches: tuple[str, int, list[list[str]]]

    @abstractmethod
    def _pin_of(self, index: int) -> str:
        """Return the pin of side A (0) or B (1)."""

    @property
    def kind(self) -> str:
        """Kind of the comparison: the chosen one, or the first that the example allows."""
        state, data = self.state, self.data
        if state.compare != "auto":
            return state.compare
        if state.other_example or data.pair_members(state.example):
            return "examples"
        if state.other_store or state.other_head:
            return "models" if state.other_store else "heads"
        names = [name for name in data.stores if name != data.name]
        example, stores = data.example(state.example), data.served_with
        return "models" if stores and any(has_example(stores[name], example) for name in names) else "examples"

    def on_message(self, message: dict[str, Any]) -> None:
        """Handle a choice on the left: the kind of comparison, B, a head, or a swap of A and B."""
        kind = self.kind
        if isinstance(text := message.get("find"), str):
            self._find(text.strip()[:200])
        elif isinstance(pairs := message.get("pairs"), str):
            self.change(pairs=pairs)
        elif isinstance(compare := message.get("compare"), str):
            self.change(compare=compare)
        elif isinstance(value := message.get("b"), str):
            field = {"examples": "other_example", "heads": "other_head", "models": "other_store"}[kind]
            self.change(compare=kind, **{field: value, **({"other_head": ""} if kind == "models" else {})})
        elif isinstance(head := message.get("head"), str) and self._sides:
            layer, _, index = head.partition(".")
            self.change(**({"layer": layer, "head": index} if kind == "examples" else {"other_head": head}))
        elif message.get("swap") and self._sides:
            self._swap(*self._sides)

    def _swap(self, a: Side, b: Side) -> None:
        if self.kind == "examples":
            self.change(example=b.reader.example.index, other_example=str(a.reader.example.index), pin=self._pin_of(1))
        elif self.kind == "heads":
            self.change(layer=b.head[0], head=b.head[1], other_head=head_name(a.head))

    def _find(self, text: str) -> None:
        """List examples that contain a text, to choose B from."""

        def work(check: Check) -> tuple[str, int, list[list[str]]]:
            if not text:
                return "", 0, []
            numbers = self.data.numbers[self.data.containing(text, check)]
            numbers = numbers[numbers != self.state.example]
            return text, len(numbers), [self._choice(int(number)) for number in numbers[:MATCHES]]

        def done(matches: tuple[str, int, list[list[str]]]) -> None:
            self._matches = matches
            self.choices.frame = {**self.choices.frame, **self._match_fields()}

        self.finds.start(text, work, done, self.failed, at_once=self.data.is_small)

    def _match_fields(self) -> dict[str, Any]:
        text, n_matches, matches = self._matches
        return {"search": text, "matches": matches, "n_matches": n_matches}

    def _choice(self, number: int) -> list[str]:
        return [str(number), f"{visible(self.data.example(number).id)}: {self.data.shown_text(number, 60)}"]

    def _other_name(self, names: Sequence[str]) -> str:
        """Return the name of the store of B: the chosen one, else the first that has the example, else the first."""
        stores, example = self.data.served_with, self.data.example(self.state.example)
        if self.state.other_store in names or stores is None:
            return self.state.other_store
        return next((name for name in names if has_example(stores[name], example)), names[0])

    def _difference_caption(self) -> Caption:
        """Return the subject of the figure of the difference: A and B, each on a line of its own."""
        caption = self.caption()
        if self._sides is None:
            return caption
        texts = [visible(side.reader.example.text) if self.kind == "examples" else side.name for side in self._sides]
        lines = [f"{letter}: {text}" for letter, text in zip("AB", texts, strict=True)]
        return replace(caption, sentence="\n".join(lines + ([] if self.kind == "examples" else [caption.sentence])))

    def _choices_frame(self, reader: Reader, why: str) -> ComparisonFrame:
        assert self._sides is not None
        state = self.state
        (a, b), kind = self._sides, self.kind
        texts = [visible(side.reader.example.text[:140])[:140] if kind == "examples" else side.name for side in (a, b)]
        choice = {"examples": str(b.reader.example.index), "heads": head_name(b.head)}.get(kind, "")
        frame: ComparisonFrame = {
            **self._open_choices(choice), "a": texts[0], "b": texts[1], "heads": self._change_list[1],
            "list": _LISTS[kind], "head": head_name(b.head), "why": why,
        }  # fmt: skip
        if kind == "examples" and self.data.pair_members(state.example):
            contrast, about = self._contrast[1:]
            scopes = pair_scopes(self.data, contrast if state.pairs else None)
            if state.pairs and state.pairs not in [value for value, _ in scopes]:
                scopes.append([state.pairs, visible(state.pairs)])
            frame["pairs"], frame["scopes"] = state.pairs, scopes
            frame["about"] = about if state.pairs and not why else ""
        return frame

    def _open_choices(self, choice: str) -> ComparisonFrame:
        """Return the choices of B, of which `choice` is chosen, without anything about the sides."""
        state, kind, data = self.state, self.kind, self.data
        if kind == "examples":
            choices = [self._choice(number) for number in data.pair_members(state.example)]
            if choice and choice not in [value for value, _ in choices]:
                choices.insert(0, self._choice(int(choice)))
        elif kind == "heads":
            heads = data.site(state.site).heads
            choices = [
                [head_name(head), f"head {head_name(head)}"] for head in heads if head != (state.layer, state.head)
            ]
        else:
            choices = [[name, name] for name in data.stores if name != data.name]
            choice = self._other_name([name for name, _ in choices]) if choices else ""
        frame: ComparisonFrame = {
            "compare": kind, "a": "", "b": "", "choices": choices, "choice": choice, "heads": [], "list": "", "head": "",
            "why": "",
        }  # fmt: skip
        if kind == "examples":
            frame["number"] = choice
            frame |= self._match_fields()  # type: ignore[assignment]
        return frame


def has_example(data: DataSource, example: Example) -> bool:
    """Return True if a store has an example with the same id and text."""
    if example.id not in data.positions:
        return False
    return data.example(data.number_of(example.id)).text == example.text
