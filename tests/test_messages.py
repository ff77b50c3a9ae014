"""Messages advise only what exists: options, commands and settings, and no Python call to a reader at a command line."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from headatlas.pipeline.config import JobConfig, _corpus_kinds
from headatlas.store.commands.main import command_line

ROOT = Path(__file__).parents[1]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"(?:^|[`:(]|run |Run |or |with )\s*headatlas ([a-z][a-z-]+)")
SETTING = re.compile(r"(?<![\w./{-])(corpus|keep|tokens|run|store|model|generate)\.(?!safetensors)([a-z_]+)(?![\w(/.])")
PYTHON = re.compile(r"\b[a-z_]+=(?:True|False|None|NUMBER|\d)|\b(?:open_store|example_ids|iter_tiles|add_statistic)\(")
OF_OTHERS = {"--no-deps", "--mono", "--shadow", "--font", "--drawer-"}
"""Options of pip, and variables of style sheets."""

PYTHON_ONLY = (
    "viewer/notebook.py",
    "viewer/frames/model_attention.py",  # called from notebooks alone
    "store/reading/example.py",
    "store/statistics/definitions.py",
    "pipeline/calls/attention_hook.py",
    "pipeline/config.py",  # --set section.key=value
)
"""Files whose messages answer Python calls."""


@cache
def messages() -> list[tuple[str, str]]:
    """Return the text of each error and of each constant that holds advice, with its place; `{}` for inserted values."""
    rows = []
    for part in ("store", "pipeline", "viewer"):
        for file in sorted((ROOT / part).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            joined = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if id(node) in joined | docstrings:
                    continue
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = node.value
                elif isinstance(node, ast.JoinedStr):
                    text = "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
                else:
                    continue
                if " " in text:
                    rows.append((f"{file.relative_to(ROOT)}:{node.lineno}", text))
    return rows


def options_of(command) -> set[str]:
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return names.union(*(options_of(inner) for inner in getattr(command, "commands", {}).values()))


def matches(expression: re.Pattern[str]) -> list[tuple[str, ...]]:
    """Return each match in a message as (place, groups or whole match ...)."""
    rows = [(place, match) for place, text in messages() for match in expression.finditer(text)]
    return [(place, *(match.groups() or (match[0],))) for place, match in rows]


def test_options_and_commands_that_messages_name_exist():
    program = command_line()
    options, named = options_of(program) | OF_OTHERS, matches(OPTION)
    assert len(named) > 50
    assert [row for row in named if row[1] not in options] == []
    commands = matches(COMMAND)
    assert len(commands) > 10
    assert [row for row in commands if row[1] not in program.commands] == []


def test_settings_that_messages_name_exist():
    fields = {name: field.annotation for name, field in JobConfig.model_fields.items()}
    settings: dict[str, set[str]] = {name: {*getattr(section, "model_fields", ())} for name, section in fields.items()}
    settings["keep"].add("preset")
    settings["corpus"] = {name for kind in _corpus_kinds().values() for name in kind.model_fields}
    named = matches(SETTING)
    assert len(named) > 30
    assert [row for row in named if row[2] not in settings[row[1]]] == []


def test_python_calls_are_not_advised_to_a_reader_at_a_command_line():
    """A message that gives a Python call says that it is one, and tells others what to do instead."""
    rows = [(place, text) for place, text in messages() if PYTHON.search(text) and not place.startswith(PYTHON_ONLY)]
    assert len(rows) > 3
    assert [row for row in rows if not re.search(r"[Ii]n Python", row[1])] == []


def test_stored_data_that_are_missing_need_another_store():
    """A job with other settings is refused for an existing store, so no message advises to run it again."""
    assert [row for row in messages() if re.search(r"[Rr]un the job again with", row[1])] == []
