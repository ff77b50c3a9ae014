"""An example is named by its id as text, or by its number as an integer. Ids that look like numbers stay ids."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_builder import make_contents, make_spec, write_store
from typer.testing import CliRunner

from headatlas.store import Store, open_store
from headatlas.store.commands.like import app as like_app
from headatlas.store.commands.maintain import app as maintain_app
from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.queries.marked_arcs import Arc, parse_arcs
from headatlas.store.queries.query_by_example import like
from headatlas.store.schema.traces import Keep
from headatlas.store.writing.drop import drop_from_store

N = 8


@pytest.fixture
def numeric(tmp_path: Path, container: str) -> Store:
    """A store whose example number n has the id str(7 - n), except number 2, whose id is 0:3."""
    ids = [str(N - 1 - number) for number in range(N)]
    ids[2] = "0:3"
    parts = []
    for part in make_contents(make_spec(Keep(edges=None)), seed=1, n_segments=2):
        tokens = {name: replace(table, word_columns={}) for name, table in part.tables.tokens.items()}
        tables = replace(part.tables, ids=ids[part.first_example : part.first_example + 4], tokens=tokens)
        parts.append(replace(part, tables=tables))
    write_store(tmp_path / "traces", parts, container=container)
    return open_store(tmp_path / "traces")


def _annotated(store: Store, example: Any, values: Any, kind: Any) -> int:
    store = store.annotate("mark", {example: values}, kind=kind, replace=True)
    if kind == "example":
        return store.example_columns()["mark"].to_list().index(1)
    frame = store.tokens_frame()
    return int(frame["example"][frame["mark"] == 1].iloc[0])


CALLS: dict[str, Callable[[Store, Any], int]] = {
    "examples": lambda store, example: store.examples[example].index,
    "drop": lambda store, example: drop_from_store(store.path, examples=[example]).examples[0],
    "annotate": lambda store, example: _annotated(store, example, 1, "example"),
    "annotate tokens": lambda store, example: _annotated(
        store, example, [1] * len(store.examples[example].tokens()), "token"
    ),
    "arc": lambda store, example: like(store, [(example, 1, 1)]).arcs[0].example,
}


@pytest.mark.parametrize("call", CALLS)
def test_text_is_an_id_and_an_integer_a_number(numeric: Store, call: str) -> None:
    for example, number in (("4", 3), (4, 4), ("0:3", 2)):
        assert CALLS[call](numeric.refresh(), example) == number, example
    with pytest.raises(NotFoundError, match=r"no example with id '99'.*--numbers"):
        CALLS[call](numeric, "99")


def test_anything_else_is_refused(numeric: Store) -> None:
    """In a process of its own, because the tests check the types of arguments before the calls do."""
    code = """
        import sys
        import numpy as np
        from headatlas.store import open_store
        from headatlas.store.errors import ConfigError
        from headatlas.store.writing.drop import drop_from_store
        store = open_store(sys.argv[1])
        assert store.examples[np.int32(7)].index == 7
        for example in (5.0, 5.7, b"5", None, (5,)):
            for call in (
                lambda: store.examples[example],
                lambda: drop_from_store(store.path, examples=[example]),
                lambda: store.annotate("mark", {example: 1}),
                lambda: store.like([(example, 1, 1)]),
            ):
                try:
                    print("accepted:", example, call())
                except ConfigError as error:
                    assert "expected a number, or an id as text" in str(error), error
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(numeric.path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == ""
    assert numeric.refresh().manifest.number == numeric.manifest.number


def run(*arguments: object) -> str:
    app = like_app if arguments[0] == "like" else maintain_app
    result = CliRunner().invoke(app, [str(word) for word in arguments if word != "like"])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_the_command_drop(numeric: Store) -> None:
    path = numeric.path
    run("drop", path, "--examples", "6", "--examples", "0:3", "--numbers", "4", "--numbers", "6:8")
    assert sorted(row.example for row in numeric.refresh().manifest.skipped) == [1, 2, 4, 6, 7]
    for wrong in ("9", "2:4", "-1"):
        with pytest.raises(NotFoundError, match=rf"no example with id '{wrong}'.*--numbers"):
            run("drop", path, "--examples", wrong)
    for wrong in ("a", "3:", "5:3", "5:5", "٣", "1.0", ""):
        with pytest.raises(ConfigError, match=r"--numbers is .*use --examples"):
            run("drop", path, "--numbers", wrong)


def test_the_command_like(numeric: Store) -> None:
    assert parse_arcs(numeric, "4:1>1 0:3:2>1") == [Arc(3, 1, 1), Arc(2, 2, 1)]
    assert parse_arcs(numeric, "4:1>1 3:2>1", numbers=True) == [Arc(4, 1, 1), Arc(3, 2, 1)]
    assert '"example": 3' in run("like", numeric.path, "4:1>1", "--json")
    assert '"example": 4' in run("like", numeric.path, "4:1>1", "--json", "--numbers")
    with pytest.raises(NotFoundError, match=r"no example with id '99'.*--numbers"):
        run("like", numeric.path, "99:1>1")
    with pytest.raises(ConfigError, match=r"--numbers was given"):
        run("like", numeric.path, "0:3:1>1", "--numbers")
