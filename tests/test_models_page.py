"""docs/models.md says what the capture does with every architecture, now."""

from __future__ import annotations

import dataclasses

import pytest

from tools.architectures import ARCHITECTURES, EAGER, EITHER, SERVED
from tools.model_rows import Companions, EagerRow, RefusedRow, ServedRow, measure
from tools.models_page import TOKENIZERS, cells, difference, page, read_cells, tokenizer_table
from tools.slow_tokenizers import BUILDERS, measure_tokenizer

ALONE = Companions(1e-7, None)
ROW = ServedRow("bert", "BertModel", "encoder, full: 2 × 4", "–", "kernel", 1e-7, 2e-7, ALONE, 3e-8, {"mask": 0.5})


@pytest.fixture(scope="module")
def written(repository) -> dict[str, list[str]]:
    return read_cells((repository / "docs/models.md").read_text(encoding="utf-8"))


def test_every_architecture_is_there_once_and_no_other(repository, written) -> None:
    assert sorted(written) == sorted(ARCHITECTURES)
    text = (repository / "docs/models.md").read_text(encoding="utf-8")
    models, _, tokenizers = text.partition(TOKENIZERS)
    assert sum(line.startswith("| ") for line in models.splitlines()) == len(ARCHITECTURES) + 6  # heads and rules
    assert tokenizers.count("\n| `") == len(BUILDERS)
    assert len(SERVED) >= 30
    assert len(EAGER) >= 8


def test_the_rows_of_tokenizers_are_current(repository) -> None:
    text = (repository / "docs/models.md").read_text(encoding="utf-8")
    assert text.endswith(tokenizer_table([measure_tokenizer(build) for build in BUILDERS.values()]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_row_is_current_and_within_the_bound(name, written) -> None:
    row = measure(name)
    kinds = [
        (SERVED, ServedRow),
        (EITHER, (ServedRow, EagerRow)),
        (EAGER, EagerRow),
    ]
    assert isinstance(row, next((kind for names, kind in kinds if name in names), RefusedRow))
    assert difference(row, written.get(name)) is None
    if isinstance(row, ServedRow):
        assert all(value > 0.01 for value in row.left_out.values()), "a part that changes nothing proves nothing"


def test_what_is_written_is_read_back() -> None:
    eager = EagerRow("xlnet", "XLNetModel", "encoder, full: 2 × 4", 0.0, ALONE, 0.0)
    refused = RefusedRow("fnet", "FNetModel", "It is not captured.")
    assert read_cells(page([ROW, eager, refused])) == {
        "bert": cells(ROW),
        "xlnet": cells(eager),
        "fnet": cells(refused),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stored": 2e-5}, "off by 2e-05 stored, 2e-07 rebuilt, 3e-08 baselines, 1e-07 batched, more than 1e-05"),
        ({"rebuilt": float("nan")}, "nan rebuilt, 3e-08 baselines"),
        ({"baselines": 0.1}, "0.1 baselines, 1e-07 batched, more than 1e-05"),
        ({"companions": Companions(0.3, 0.2)}, "0.2 batched, more than 1e-05"),
        ({"companions": Companions(0.3, 1e-7)}, "of its batches"),
        ({"scores": "sinks"}, "the page says"),
        ({"sites": "encoder, full: 3 × 4"}, "the page says"),
    ],
)
def test_a_wrong_row_is_noticed(change, message) -> None:
    assert difference(ROW, cells(ROW)) is None
    difference_text = difference(dataclasses.replace(ROW, **change), cells(ROW))
    assert difference_text is not None
    assert message in difference_text


def test_a_missing_row_is_noticed() -> None:
    assert difference(ROW, None) == "bert is missing"
