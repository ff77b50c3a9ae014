"""Headers of Parquet pages: they agree with the footers of honest files, and other bytes are refused."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headatlas.pipeline.corpora.arrow_tables import _first_page
from headatlas.pipeline.corpora.parquet_pages import ColumnPages, DamagedPageError, read_pages


def pages_of(path: Path) -> list[tuple[ColumnPages, Any]]:
    """Return the pages and the entry of the footer of each column of each row group."""
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [(read_pages(data, _first_page(c), c.total_compressed_size), c) for c in columns]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", ["dictionary", "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_the_headers_agree_with_an_honest_footer(encoding: str, version: str, tmp_path: Path) -> None:
    texts = [None if i % 7 == 0 else f"the cat runs {i % 90} times" for i in range(5000)]
    table = pa.table({"text": texts, "words": [(text or "").split() for text in texts], "n": range(5000)})
    options: dict[str, Any] = {"use_dictionary": True}
    if encoding != "dictionary":
        options = {"use_dictionary": False, "column_encoding": {"text": encoding}}
    pq.write_table(
        table, tmp_path / "a.parquet", row_group_size=2100, data_page_version=version, data_page_size=4096,
        write_page_checksum=True, compression="zstd", **options,
    )  # fmt: skip
    rows = pages_of(tmp_path / "a.parquet")
    assert len(rows) == 9
    for pages, column in rows:
        assert pages.n_values == column.num_values
        assert 0 < column.total_uncompressed_size - pages.expanded_bytes < 200 * 60  # the headers themselves
        assert 0 < column.total_compressed_size - pages.stored_bytes < 200 * 60
        is_delta = encoding.startswith("DELTA") and column.path_in_schema == "text"
        assert pages.has_delta_texts == is_delta


@given(st.binary(min_size=1, max_size=60), st.integers(-1, 70))
@example(b"\x15\x00\x15\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 15)
@example(b"\x1c" * 40, 40)
@example(b"\x19\xf1\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 11)
def test_other_bytes_are_refused(content: bytes, n_bytes: int) -> None:
    with mmap.mmap(-1, len(content)) as data:
        data[:] = content
        try:
            pages = read_pages(data, 0, n_bytes)
        except DamagedPageError:
            return
        assert 0 <= pages.stored_bytes <= n_bytes
