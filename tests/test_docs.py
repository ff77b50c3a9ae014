"""Documentation pages: links lead somewhere, examples parse, and commands exist with the options they use.

Nothing is run: the parsers of the command line read the examples.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tools.cli_reference import command_tree

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/tutorials/*.md"),
    )
)
HISTORY = ("CHANGELOG.md", "docs/log.md")
"""Pages that may name files of the past."""
FENCE = re.compile(r"^\s*(`{3,})\s*([\w-]*)")
INLINE_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^()\s>]+)>?[^()]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
REPOSITORY_PATH = re.compile(r"(?:pipeline|store|viewer|configs|tests|tools|benchmarks|docs)/[\w./-]*")
REMOTE = ("http://", "https://", "mailto:")
SHELLS = ("sh", "bash", "shell", "console")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: its language, the line it starts at, and its code."""

    language: str
    line: int
    code: str


def split_page(text: str) -> tuple[str, list[CodeBlock]]:
    """Split a page into its prose, with blank lines where the code was, and its code blocks."""
    prose: list[str] = []
    blocks: list[CodeBlock] = []
    code: list[str] | None = None
    fence, language, start = "", "", 0
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if code is None and match:
            fence, language, start, code = match[1], match[2], number + 1, []
        elif code is not None and line.strip() == fence:
            blocks.append(CodeBlock(language, start, "\n".join(code) + "\n"))
            code = None
        elif code is not None:
            code.append(line)
        prose.append("" if match or code is not None else line)
    assert code is None, f"the code block of line {start} is not closed"
    return "\n".join(prose), blocks


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, spelled as GitHub spells them."""
    result: set[str] = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", split_page(text)[0], re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        names = (slug if n == 0 else f"{slug}-{n}" for n in range(len(result) + 1))
        result.add(next(name for name in names if name not in result))
    return result


def link_problems(page: Path, root: Path) -> list[str]:
    """List the relative links and anchors of a page that lead nowhere, or out of the repository."""
    text = page.read_text(encoding="utf-8")
    problems = []
    for groups in LINK.findall(INLINE_CODE.sub("", split_page(text)[0])):
        link = next(group for group in groups if group)
        if link.startswith(REMOTE):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        if not target.is_relative_to(root) or not target.exists():
            problems.append(f"{link}: no such file")
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text(encoding="utf-8"))):
            problems.append(f"{link}: no such heading")
    return problems


def block_problem(block: CodeBlock) -> str | None:
    """Return the syntax error of a block of TOML or Python, or None. Blocks of other languages are not read."""
    try:
        if block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "python":
            compile(block.code, "example", "exec", dont_inherit=True)
    except (tomllib.TOMLDecodeError, SyntaxError) as error:
        return str(error)
    return None


def shell_commands(block: CodeBlock) -> Iterator[list[str]]:
    """Yield the arguments of each `headatlas` command in a shell block, without pipes and redirections."""
    for line in block.code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        arguments: list[str] = []
        for word in (*lexer, ";"):
            if set(word) <= set("|&;<>"):
                if arguments[:1] == ["headatlas"]:
                    yield arguments[1:]
                arguments = []
            else:
                arguments.append(word)


def command_problem(arguments: list[str]) -> str | None:
    """Return the error in the arguments of `headatlas`, or None. They are parsed, and not executed."""
    if not arguments or arguments[0].startswith("-"):
        options = {option for parameter in _command_tree().params for option in parameter.opts} | {
            "--help",
            "--version",
        }
        return next((f"no option {word}" for word in arguments if word not in options), None)
    command = _command_tree().commands.get(arguments[0])
    if command is None:
        return f"no command {arguments[0]}"
    context = command.context_class(command, info_name=arguments[0])
    try:
        values, extra, _ = command.make_parser(context).parse_args(list(arguments[1:]))
        for parameter in command.get_params(context):
            if parameter.name in values and parameter.opts[0].startswith("-") and parameter.callback is None:
                parameter.process_value(context, values[parameter.name])  # five is not a number
    except Exception as error:  # typer does not export the classes of its errors
        return getattr(error, "format_message", error.__str__)()
    return f"unexpected arguments {extra}" if extra else None


def inline_problem(code: str) -> str | None:
    """Return the error in a command that prose mentions, such as `headatlas search … --words mean`, or None.

    The command and its options must exist. Values may be missing or placeholders.
    """
    words = [word.partition("=")[0] for word in code.split()]
    if words[:1] != ["headatlas"] or len(words) < 2 or not re.fullmatch(r"-*[a-z-]+", words[1]):
        return None
    if words[1].startswith("-"):
        return command_problem(words[1:])
    command = _command_tree().commands.get(words[1])
    if command is None:
        return f"no command {words[1]}"
    parameters = command.get_params(command.context_class(command, info_name=words[1]))
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    used_options = [word for word in words[2:] if re.fullmatch(r"-?-[a-z][a-z-]*", word)]
    return next((f"{words[1]}: no option {word}" for word in used_options if word not in options), None)


def path_problem(code: str, root: Path) -> str | None:
    """Return the error in a path of the repository that prose mentions, or None. NAME and KIND stand for any name."""
    if not REPOSITORY_PATH.fullmatch(code):
        return None
    paths = root.glob(re.sub("NAME|KIND", "*", code).rstrip("/"))
    return None if any(path.is_dir() or not code.endswith("/") for path in paths) else "no such file"


@cache
def _command_tree() -> Any:
    return command_tree()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name) -> None:
    assert link_problems(ROOT / name, ROOT) == []


@pytest.mark.parametrize("name", PAGES)
def test_examples_in_toml_and_python_parse(name) -> None:
    _, blocks = split_page((ROOT / name).read_text(encoding="utf-8"))
    problems = [f"line {block.line}: {problem}" for block in blocks if (problem := block_problem(block))]
    assert problems == []


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist_with_their_options(name) -> None:
    prose, blocks = split_page((ROOT / name).read_text(encoding="utf-8"))
    problems = [
        f"line {block.line}: headatlas {shlex.join(arguments)}: {problem}"
        for block in blocks
        if block.language in SHELLS
        for arguments in shell_commands(block)
        if (problem := command_problem(arguments))
    ]
    spans = [match[2] for match in INLINE_CODE.finditer(prose)]
    problems += [f"`{code}`: {problem}" for code in spans if (problem := inline_problem(code))]
    assert problems == []


@pytest.mark.parametrize("name", [name for name in PAGES if name not in HISTORY])
def test_paths_exist(name) -> None:
    prose, _ = split_page((ROOT / name).read_text(encoding="utf-8"))
    spans = [match[2] for match in INLINE_CODE.finditer(prose)]
    assert [f"`{code}`: {problem}" for code in spans if (problem := path_problem(code, ROOT))] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[text](other.md)", None),
        ("[text](other.md#second-part-of-it)", None),
        ("![picture](images/a.png) and [here](#here)\n\n# Here\n", None),
        ("[twice](#here-1)\n\n# Here\n\n# Here\n", None),
        ("[outside](https://example.org/missing.md#nothing)", None),
        ("`[code](missing.md)`\n\n```sh\n[code](missing.md)\n# no heading\n```\n", None),
        ("[text](missing.md)", "missing.md: no such file"),
        ("[text](other.md#third-part)", "other.md#third-part: no such heading"),
        ("[code](#heading)\n\n```sh\n# heading\n```\n", "#heading: no such heading"),
        ("[picture](images/a.png#part)", "images/a.png#part: no such heading"),
        ("[text](../../secret.md)", "../../secret.md: no such file"),
        ("See [text][1].\n\n[1]: missing.md\n", "missing.md: no such file"),
    ],
)
def test_the_checker_of_links(tmp_path, text, problem) -> None:
    root = tmp_path / "repository"
    (root / "images").mkdir(parents=True)
    (root / "images/a.png").write_bytes(b"")
    (root / "other.md").write_text("# Other\n\n## `Second` part, of [it](other.md)\n", encoding="utf-8")
    (tmp_path / "secret.md").write_text("", encoding="utf-8")
    (root / "page.md").write_text(text, encoding="utf-8")
    assert link_problems(root / "page.md", root) == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("language", "code", "is_sound"),
    [
        ("toml", 'a = "b"\n', True),
        ("toml", "a = b\n", False),
        ("python", "from x import y\ny(1)\n", True),
        ("python", "y(1\n", False),
        ("text", "y(1\n", True),
    ],
)
def test_the_checker_of_examples(language, code, is_sound) -> None:
    prose, blocks = split_page(f"Before\n\n```{language}\n{code}```\nafter\n")
    assert blocks == [CodeBlock(language, 4, code)]
    assert prose.split() == ["Before", "after"]
    assert (block_problem(blocks[0]) is None) == is_sound


@pytest.mark.parametrize(
    ("code", "is_sound"),
    [
        ("headatlas verify traces/demo --full  # every byte", True),
        ("$ headatlas run job.toml --set run.threads=1 \\\n    --out traces/x | tee log", True),
        ("cd x && headatlas info traces/demo > info.txt; ls --no-such-option", True),
        ("headatlas search traces/demo 'key.position < 3' --top 5", True),
        ("headatlas --help", True),
        ("headatlas check traces/demo", False),
        ("headatlas verify traces/demo --complete", False),
        ("headatlas verify traces/demo another", False),
        ("headatlas search traces/demo x --top five", False),
        ("headatlas search traces/demo x --by sum", False),
        ("headatlas search traces/demo x --top", False),
        ("headatlas --complete", False),
        ("cd x && headatlas check traces/demo", False),
    ],
)
def test_the_checker_of_commands(code, is_sound) -> None:
    (arguments,) = shell_commands(CodeBlock("sh", 1, code + "\n"))
    assert (command_problem(arguments) is None) == is_sound


@pytest.mark.parametrize(
    ("code", "is_sound"),
    [
        ("headatlas search … --words mean", True),
        ("headatlas run --sample N", True),
        ("headatlas.store", True),
        ("headatlas", True),
        ("headatlas check", False),
        ("headatlas search --sample", False),
    ],
)
def test_the_checker_of_commands_in_prose(code, is_sound) -> None:
    assert (inline_problem(code) is None) == is_sound


@pytest.mark.parametrize(
    ("code", "is_sound"),
    [
        ("docs/glossary.md", True),
        ("docs/", True),
        ("pipeline/corpora/KIND.py", True),
        ("headatlas/docs", True),
        ("docs/missing.md", False),
        ("docs/glossary.md/", False),
        ("pipeline/missing/NAME.py", False),
    ],
)
def test_the_checker_of_paths(code, is_sound) -> None:
    assert (path_problem(code, ROOT) is None) == is_sound
