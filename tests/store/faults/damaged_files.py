"""Damage to every file of a store in turn: missing, empty, cut, longer, a link, or with another file's content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fault_stores import equal, lean_contents, one_case, read_all, write_lean

from headatlas.store.errors import CorruptSegmentError, FormatError
from headatlas.store.store import open_store
from headatlas.store.writing.verification import verify_store

_Change = Callable[[Path, bytes, bytes], None]
DAMAGES: dict[str, _Change] = {
    "missing": lambda path, data, other: path.unlink(),
    "zero-length": lambda path, data, other: path.write_bytes(b""),
    "cut by one byte": lambda path, data, other: path.write_bytes(data[:-1]),
    "cut in half": lambda path, data, other: path.write_bytes(data[: len(data) // 2]),
    "longer": lambda path, data, other: path.write_bytes(data + b"\0"),
    "all zeros": lambda path, data, other: path.write_bytes(bytes(len(data))),
    "swapped with another": lambda path, data, other: path.write_bytes(other),
    "swapped, size kept": lambda path, data, other: path.write_bytes(
        (other * (len(data) // max(1, len(other)) + 1))[: len(data)]
    ),
}
"""Kinds of damage. `other` is the content of the next file of the same kind: a shard for a shard."""
READING_KEEPS_SIZE = ("swapped with another", "swapped, size kept")
"""Damage that leaves a valid file, so only its hash differs. `verify --full` compares hashes; reading does not."""


def run(folder: Path, container: str, every: int = 1) -> dict[str, tuple[int, list[str]]]:
    """Apply each damage to each file, or to one in `every`."""
    path = folder / "traces"
    write_lean(path, lean_contents(n_segments=2), container)
    expected = read_all(open_store(path))
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix != ".lease"]
    data = {file: file.read_bytes() for file in files}
    result = {}
    for number, (damage, change) in enumerate(DAMAGES.items()):
        violations: list[str] = []
        victims = [file for file in files[number % every :: every] if _counts(damage, data, file)]
        for victim in victims:
            change(victim, data[victim], data[_another(files, victim)])
            with one_case(violations, f"{victim.relative_to(path)} {damage}"):
                _check(path, victim, damage, expected)
            victim.unlink(missing_ok=True)
            victim.write_bytes(data[victim])
        with one_case(violations, "afterwards"):
            assert verify_store(path, full=True).is_sound
        result[f"object {damage} ({container})"] = (len(victims), violations)
    return result


def _counts(damage: str, data: dict[Path, bytes], file: Path) -> bool:
    """Return True if the damage changes the file."""
    return damage not in READING_KEEPS_SIZE or data[file] != data[_another(list(data), file)]


def _another(files: list[Path], victim: Path) -> Path:
    """Return the next file of the same name and depth, or else the next file."""
    alike = [f for f in files if f.name == victim.name and len(f.parts) == len(victim.parts)] or files
    alike = alike if len(alike) > 1 else [f for f in files if f.suffix == victim.suffix]
    return alike[(alike.index(victim) + 1) % len(alike)]


def _check(path: Path, victim: Path, damage: str, expected: dict) -> None:
    name = str(victim.relative_to(path))
    newest = victim.name == "manifest-000002.json"
    numbered = victim.parent == path
    try:
        arrays = read_all(open_store(path))
        is_unchanged = all(equal(arrays[key], data) for key, data in expected.items())
        assert is_unchanged or damage in READING_KEEPS_SIZE, "other numbers are read without an error"
        assert not newest or damage in READING_KEEPS_SIZE, "an older snapshot answered"
        assert numbered or damage in READING_KEEPS_SIZE or damage == "all zeros", "nothing was noticed on reading"
    except (CorruptSegmentError, FormatError):
        pass
    if numbered and not newest and damage == "missing":  # it looks as if it was collected
        return
    findings = verify_store(path, full=True).findings
    assert name in [finding.object for finding in findings], f"verify names {[f.object for f in findings]}"
    for finding in findings:
        if finding.segment is not None:
            first = 3 * finding.segment
            assert first <= (finding.first_example or first) <= (finding.last_example or first) <= first + 2
