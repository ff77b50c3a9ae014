"""Damage of every file of a store: missing, empty, truncated, longer, or with the content of another file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fault_stores import equal, lean_contents, one_case, read_all, write_lean

from headatlas.store.errors import CorruptSegmentError, FormatError
from headatlas.store.store import open_store
from headatlas.store.writing.verify import verify_store

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
"""Damage by name. `other` is the content of the next file of the same kind: a shard, or a listing."""
READING_KEEPS_SIZE = ("swapped with another", "swapped, size kept")
"""Damage that only hashes can detect, which `verify --full` compares and reading does not."""


def run(folder: Path, container: str, every: int = 1) -> dict[str, tuple[int, list[str]]]:
    """Apply each damage to each file, or to one file of `every`."""
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
    """True if the damage changes the file."""
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
    if newest and damage == "missing":  # the previous snapshot is then the newest, and the loss cannot be detected
        assert len(open_store(path).segments) == 1
        return
    try:
        arrays = read_all(open_store(path))
        is_equal = all(equal(arrays[key], data) for key, data in expected.items())
        assert is_equal or damage in READING_KEEPS_SIZE, "reads otherwise, without an error"
        assert numbered or damage in READING_KEEPS_SIZE or damage == "all zeros", "nothing was noticed on reading"
    except (CorruptSegmentError, FormatError):
        pass
    if numbered and damage == "missing":  # equal to a collected manifest
        return
    findings = verify_store(path, full=True).findings
    assert name in [finding.object for finding in findings], f"verify names {[f.object for f in findings]}"
    for finding in findings:
        if finding.segment is not None:
            first = 3 * finding.segment
            assert first <= (finding.first_example or first) <= (finding.last_example or first) <= first + 2
