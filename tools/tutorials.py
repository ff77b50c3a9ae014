"""Runs the commands of the tutorials and writes the numbers that they give into the pages, docs/tutorials/NAME.md.

The blocks ```` ```sh ```` of a page run in their order, in the new folder build/tutorials/NAME, which has links to
docs/ and configs/. So the commands of a page also work in the root of a clone. A page says what it takes from the run:

- A block ```` ```text ```` after a block of commands holds what these print to standard output.
- A number after a comment such as `<!-- =heads.json/heads/layer=5,head=8/effect -->0.182` comes from a JSON file of the
  run. A step is a key, an index, or the values of some fields of the first record of a list that has them. The number keeps
  its decimals and its explicit sign; with ` %` after it, a share is written in percent.
- A picture `images/NAME.svg` is the file of the same name in the folder.
- `<!-- corpora: winobias winogender -->` names folders in HEADATLAS_DATA. Without them the commands have to do with
  other texts. The page of such a run stays in build/tutorials/NAME.
- A block after `<!-- not run -->` is not run.

    python -m tools.tutorials bias                # without a name all pages
    python -m tools.tutorials bias --numbers      # after a change of the prose: the numbers of the last run
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "tutorials"
RUNS = ROOT / "build" / "tutorials"
BLOCK = re.compile(
    r"^(?P<skipped><!-- not run -->\n\n?)?```sh\n(?P<commands>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
NUMBER = r"[+−-]?\d+(?:,\d{3})*(?:\.\d+)?"
MARKED = re.compile(rf"<!-- =(?P<source>\S+) -->(?P<number>{NUMBER})(?P<percent>(?: | |&nbsp;)?%)?")
CORPORA = re.compile(r"<!-- corpora: ([\w -]+) -->")
IMAGE = re.compile(r"\]\(images/([\w.-]+)\)")


class TutorialError(Exception):
    """A page cannot be run: a command failed, or the run has no such number."""


@dataclass(frozen=True)
class Run:
    """A page after its commands ran."""

    text: str
    """The page with the numbers of the run."""
    images: list[Path]
    missing_corpora: list[str]
    """Folders of HEADATLAS_DATA that the page names and the machine lacks."""
    seconds: float


def run_page(page: Path, folder: Path, *, only_numbers: bool = False) -> Run:
    """Run the commands of a page in a new folder, and return the page with the numbers of the run.

    With `only_numbers` nothing is run: the numbers are those of the last run in the folder, and outputs stay.

    Raises
    ------
    TutorialError
        A command failed, or the page names a number or a picture that the run does not have.
    """
    text = page.read_text(encoding="utf-8")
    start = time.monotonic()
    if not only_numbers:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "images").mkdir(parents=True)
        for name in ("docs", "configs"):
            (folder / name).symlink_to(ROOT / name)

    def rewrite(match: re.Match[str]) -> str:
        if match["skipped"] or only_numbers:
            return match[0]
        line = text.count("\n", 0, match.start()) + 2
        output = _run_commands(match["commands"], folder, f"{page.name}:{line}")
        if match["output"] is None:
            return match[0]
        return f"```sh\n{match['commands']}```\n\n```text\n{output}```\n"

    with_outputs = BLOCK.sub(rewrite, text)
    with_numbers = MARKED.sub(lambda match: _rewrite_number(match, folder, page.name), with_outputs)
    images = [folder / "images" / name for name in dict.fromkeys(IMAGE.findall(text))]
    if absent := [path.name for path in images if not path.is_file()]:
        raise TutorialError(f"{page.name} shows {', '.join(absent)}, but no command wrote it to images/")
    names = [name for match in CORPORA.finditer(text) for name in match[1].split()]
    missing = [name for name in names if not (data_folder() / name).is_dir()]
    return Run(with_numbers, images, missing, time.monotonic() - start)


def data_folder() -> Path:
    """Return the folder of the corpora: HEADATLAS_DATA, or shared/data beside the repository."""
    return Path(os.environ.get("HEADATLAS_DATA") or ROOT.parent / "shared" / "data").resolve()


def _run_commands(commands: str, folder: Path, location: str) -> str:
    """Run a block of commands, and return what it printed without spaces at the ends of lines."""
    environment = os.environ | {
        "HEADATLAS_DATA": str(data_folder()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "COLUMNS": "120",
    }
    print(f"--- {location}\n{commands}", file=sys.stderr, flush=True)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    if result.returncode:
        raise TutorialError(f"the commands at {location} ended with exit code {result.returncode}:\n{commands}")
    return "".join(f"{line.rstrip()}\n" for line in result.stdout.strip("\n").splitlines())


def _rewrite_number(match: re.Match[str], folder: Path, page: str) -> str:
    """Return a marked number with the value of the run."""
    value = read_value(folder, match["source"], page) * (100 if match["percent"] else 1)
    number = format_like(value, match["number"])
    return f"<!-- ={match['source']} -->{number}{match['percent'] or ''}"


def read_value(folder: Path, source: str, page: str) -> float:
    """Return the number that a path such as ``heads.json/heads/layer=5,head=8/effect`` names.

    Raises
    ------
    TutorialError
        There is no such file or entry, or it is not a number.
    """
    file, _, steps = source.partition(".json/")
    try:
        value: Any = json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))
        for step in steps.split("/"):
            value = _entry(value, step)
        number = float(value)
    except (OSError, ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
        raise TutorialError(f"{page} asks for {source}, which the run does not have ({error!r})") from error
    if not math.isfinite(number):
        raise TutorialError(f"{page} asks for {source}, which is {number}")
    return number


def _entry(value: Any, step: str) -> Any:
    """Return an entry of a JSON object or list: that of a key, of an index, or the first with the values of some fields."""
    if not isinstance(value, list):
        return value[step]
    if "=" not in step:
        return value[int(step)]
    fields = dict(field.split("=", 1) for field in step.split(","))
    return next(row for row in value if all(str(row[name]) == text for name, text in fields.items()))


def format_like(value: float, sample: str) -> str:
    """Format a number with the decimals of another one, and with its plus sign."""
    n_decimals = len(sample.partition(".")[2])
    text = f"{abs(value):,.{n_decimals}f}"
    is_negative = value < 0 and float(text.replace(",", "")) != 0
    return f"{'−' if is_negative else '+' if sample.startswith('+') else ''}{text}"


def differences(page: str, run: str) -> list[str]:
    """Describe what a page says otherwise than its run.

    Numbers may differ by one unit of their last digit. Other text must be the same but for spaces.
    """
    result = []
    lines, lines_of_run = page.splitlines(), run.splitlines()
    frames = [[_frame(line) for line in text] for text in (lines, lines_of_run)]
    for tag, start, end, start_of_run, end_of_run in SequenceMatcher(None, *frames, autojunk=False).get_opcodes():
        shown, computed = lines[start:end], lines_of_run[start_of_run:end_of_run]
        if tag != "equal":
            result.append(f"line {start + 1}: {shown}, in the run {computed}")
            continue
        pairs = enumerate(zip(shown, computed, strict=True), start + 1)
        result += [
            f"line {n}: {line!r}, in the run {other!r}" for n, (line, other) in pairs if not _is_close(line, other)
        ]
    return result


def _frame(line: str) -> str:
    """Return a line with 0 for every number, and one space for any."""
    return re.sub(r"\s+|─+", " ", re.sub(NUMBER, "0", line)).strip()


def _is_close(line: str, line_of_run: str) -> bool:
    """True if the numbers of two lines differ by at most one unit of the last digit."""
    for shown, computed in zip(re.findall(NUMBER, line), re.findall(NUMBER, line_of_run), strict=True):
        unit = 10.0 ** -min(len(text.partition(".")[2]) for text in (shown, computed))
        if abs(_value(shown) - _value(computed)) > unit * 1.001:
            return False
    return True


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def keep(run: Run, page: Path, folder: Path) -> str:
    """Write a page and its pictures, and return a sentence about it. A run on other texts changes no page."""
    if run.missing_corpora:
        path = folder / page.name
        path.write_text(run.text, encoding="utf-8")
        missing = ", ".join(run.missing_corpora)
        return f"{data_folder()} has no {missing}, so the commands ran on other texts. Their numbers: {path}"
    changed = differences(page.read_text(encoding="utf-8"), run.text)
    page.write_text(run.text, encoding="utf-8")
    (page.parent / "images").mkdir(exist_ok=True)
    for image in run.images:
        shutil.copyfile(image, page.parent / "images" / image.name)
    return "\n".join([f"written, {len(changed)} lines changed", *changed])


def main() -> int:
    """Run the pages that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pages without .md, such as bias; default all")
    parser.add_argument("--numbers", action="store_true", help="run nothing: write the numbers of the last run again")
    arguments = parser.parse_args()
    for name in arguments.names or sorted(path.stem for path in PAGES.glob("*.md")):
        page, folder = PAGES / f"{name}.md", RUNS / name
        try:
            run = run_page(page, folder, only_numbers=arguments.numbers)
            print(f"{name}: {run.seconds:.0f} s. {keep(run, page, folder)}")
        except (TutorialError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
