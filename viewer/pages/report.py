"""The report: all stars and notes of a store with figures, as one HTML or Markdown file that needs nothing else."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass

import numpy as np

from headatlas.store.errors import HeadAtlasError
from headatlas.store.schema.traces import Site, head_index

from ..components.background import Check
from ..data.example_reader import Head, reader_of
from ..data.store_data import DataSource
from ..data.store_facts import facts_frame, names_of
from ..figures.attention_figures import LineChoices, lines_figure
from ..figures.drawing import COLUMNS_MM
from ..figures.figure_parts import Caption
from ..frames.view_frames import cut_tokens, head_name
from ..state.reader_state import ViewState
from ..theme.fonts import FONT
from ..theme.token_labels import visible
from .bookmark_list import bookmark_rows

MAX_ENTRIES, MAX_TOKENS, MAX_FIGURE_HEADS = 100, 40, 4
"""Most bookmarks with a section, most tokens of a figure, and most heads of the figure of an example."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = (
    f"body {{ font: 15px/1.5 {FONT}; max-width: 760px; margin: 32px auto; padding: 0 16px; color: #171C26 }} "
    "h2 { margin-top: 32px } figure { margin: 12px 0 } figcaption { font-size: 13px; color: #4C5565 } "
    "blockquote { margin: 8px 0; padding-left: 12px; border-left: 3px solid #C7CDD8; white-space: pre-wrap }"
)


@dataclass(frozen=True)
class Entry:
    """Section of one bookmark. `figure` is an SVG picture, empty if there is none; `caption` then gives the reason."""

    title: str
    note: str
    lines: tuple[str, ...]
    figure: str
    caption: str


def make_report(data: DataSource, state: ViewState, kind: str, check: Check) -> str:
    """Return the report as a document: ``html`` or ``md``.

    A head is drawn on the example where the chosen statistic is highest, an example with its starred heads.
    """
    rows, n_missing = bookmark_rows(data, state)
    entries = []
    for row in rows[:MAX_ENTRIES]:
        check()
        patch, star = row["patch"], "\u2605 " if row["star"] else ""
        try:
            entry = _head_entry if row["kind"] == "head" else _example_entry
            lines, figure, caption = entry(data, state, patch)
        except HeadAtlasError as error:
            lines, figure, caption = (), "", f"No figure: {data.error_text(error)}"
        entries.append(Entry(f"{star}{row['kind'].capitalize()} {row['name']}", row["note"], lines, figure, caption))
    facts = [f"{label}: {value}" for value, label in facts_frame(data)["facts"]]
    left_out = [f"{len(rows) - MAX_ENTRIES:,} more bookmarks are left out."] if len(rows) > MAX_ENTRIES else []
    left_out += (
        [f"{n_missing:,} bookmarks are of heads or examples that this store does not have."] if n_missing else []
    )
    title = f"Stars and notes of {data.name}"
    return (_html if kind == "html" else _markdown)(title, facts + left_out, entries)


def _head_entry(data: DataSource, state: ViewState, patch: dict[str, object]) -> tuple[tuple[str, ...], str, str]:
    site, head = data.site(str(patch["site"])), (int(str(patch["layer"])), int(str(patch["head"])))
    index = head_index(site, *head)
    lines = []
    for name in data.statistics_of(site.name):
        values = data.head_values(site.name, name)
        rank = f", rank {values.ranks[index]} of {int((values.ranks > 0).sum())}" if values.ranks[index] else ""
        lines.append(f"{values.label}: {values.values[index]:.3f}{' ' + values.unit if values.unit else ''}{rank}")
    names = data.statistics_of(site.name)
    statistic = state.statistic if state.statistic in names else names[0]
    scores = data.over_examples(site.name, statistic)[index]
    if not np.isfinite(scores).any():
        return tuple(lines), "", "No figure: no example has a value of this head."
    number = int(data.numbers[int(np.nanargmax(scores))])
    figure, caption = _figure(data, site, number, [head])
    return (
        tuple(lines),
        figure,
        f"{caption} The example has the highest {data.head_values(site.name, statistic).label}.",
    )


def _example_entry(data: DataSource, state: ViewState, patch: dict[str, object]) -> tuple[tuple[str, ...], str, str]:
    number, site = int(str(patch["example"])), data.site(state.site)
    starred = {name for name, bookmark in data.head_bookmarks(site.name).items() if bookmark["star"]}
    heads = [head for head in site.heads if f"{head[0]}.{head[1]}" in starred] or [(state.layer, state.head)]
    figure, caption = _figure(data, site, number, heads[:MAX_FIGURE_HEADS])
    n_more = len(heads) - MAX_FIGURE_HEADS
    more = f" {n_more} more starred heads are not drawn." if n_more > 0 else ""
    return (data.shown_text(number, 2_000),), figure, caption + more


def _figure(data: DataSource, site: Site, number: int, heads: list[Head]) -> tuple[str, str]:
    """Draw the strongest edges of heads on the first tokens of an example. Returns an SVG picture and its caption."""
    reader = reader_of(data, number, site.name)
    n_queries, n_keys = (min(n, MAX_TOKENS) for n in reader.shape)
    names = ", ".join(map(head_name, heads))
    part = f", its first {MAX_TOKENS} tokens" if max(reader.shape) > MAX_TOKENS else ""
    caption = (
        f"Head{'s' if len(heads) > 1 else ''} {names} on example {visible(data.example(number).id)}{part}: lines from each "
        "query (left) to its strongest keys, up to 75 % of the row. Lines of special tokens are left out."
    )
    maps = reader.maps(heads, query=slice(0, n_queries), key=slice(0, n_keys))
    figure = lines_figure(
        maps, [head_name(head) for head in heads], cut_tokens(reader.queries, 0, n_queries),
        cut_tokens(reader.keys, 0, n_keys), LineChoices(causal=site.causal),
        Caption(model=names_of(data)[0], example=visible(data.example(number).id)), COLUMNS_MM["double"],
    )  # fmt: skip
    return figure.svg(), caption


def _html(title: str, facts: list[str], entries: list[Entry]) -> str:
    escape = html.escape
    parts = [f"<h1>{escape(title)}</h1>", "<ul>", *(f"<li>{escape(fact)}</li>" for fact in facts), "</ul>"]
    for entry in entries:
        parts.append(f'<h2 dir="auto">{escape(entry.title)}</h2>')
        parts += [f'<blockquote dir="auto">{escape(entry.note)}</blockquote>'] if entry.note else []
        parts += ["<ul>", *(f'<li dir="auto">{escape(line)}</li>' for line in entry.lines), "</ul>"]
        parts.append(f"<figure>{entry.figure}<figcaption>{escape(entry.caption)}</figcaption></figure>")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>{"".join(parts)}</body></html>\n'
    )


def _markdown(title: str, facts: list[str], entries: list[Entry]) -> str:
    parts = [f"# {_plain(title)}", "\n".join(f"- {_plain(fact)}" for fact in facts)]
    for entry in entries:
        parts.append(f"## {_plain(entry.title)}")
        parts += ["\n".join(f"> {_plain(line)}" for line in entry.note.splitlines())] if entry.note else []
        parts.append("\n".join(f"- {_plain(line)}" for line in entry.lines))
        if entry.figure:
            picture = base64.b64encode(entry.figure.encode()).decode("ascii")
            parts.append(f"![{_plain(entry.title)}](data:image/svg+xml;base64,{picture})")
        parts.append(_plain(entry.caption))
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(text: str) -> str:
    """Return a text in one line whose characters Markdown and HTML do not interpret."""
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|!&" else c for c in line)
