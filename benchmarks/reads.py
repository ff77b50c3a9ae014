"""Cost of reading: one example, one head of all, opening; beside `np.load` of a padded array and plain h5py.

The same weights are stored in five forms: a headatlas store in each container, a float16 array [example, layer, head,
query, key] padded to the longest example (`np.load`, memory-mapped), and that array in HDF5 with gzip and with zstd, a
chunk a map. Every read returns float32 maps without padding. Each read is done once before it is timed, so that the
page cache is warm. The store is open and its lengths are in memory, but decoded attention is not cached. CPU time,
interleaved read by read.

``HEADATLAS_BENCH_STORE`` names a store to read (it must hold attention). Otherwise the benchmark captures MiniLM over
the development set of UD English EWT, and stops if that is missing. Opening is measured on a store of 1,000 tiny
segments.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
from jaxtyping import Float16, Float32
from rich.console import Console
from rich.table import Table

from headatlas.store import Store, open_store
from headatlas.store.codecs.companding import decode_attention
from headatlas.store.files.manifest import manifest_name, manifest_numbers
from headatlas.store.reading.pair_attention import read_pairs
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import TokenTable
from headatlas.store.schema.traces import Keep, Site, TraceSpec, segment_layout
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.store_writer import StoreWriter

from .inputs import EWT_DEV, ewt_file
from .interleave import Mode, Timing, interleave, speed_ratio
from .report import Row, described, machine_facts, report

REPEATS = int(os.environ.get("HEADATLAS_BENCH_REPEATS", "5"))
EXAMPLES = int(os.environ.get("HEADATLAS_BENCH_EXAMPLES", "1000000"))
"""Limit of the examples. The padded array of all of EWT takes 2.3 GB of disk."""
N_SEGMENTS = 1000
N_ITEMS = 24
OURS = "headatlas, zarr"
MODES = (OURS, "headatlas, hdf5", "np.load", "h5py, gzip", "h5py, zstd")
Maps = list[Float32[np.ndarray, "..."]]


@dataclass(frozen=True)
class Reads:
    """Reads of one mode. Each returns float32 maps without padding."""

    example: Callable[[int], Maps]
    one_map: Callable[[int], Maps]
    head: Callable[[tuple[int, int]], Maps]
    fresh: Callable[[int], Maps]
    """Open the files anew and read one example."""


def main() -> None:
    """Measure every read and write build/bench/reads.json."""
    with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as name:
        folder = Path(name)
        source = open_store(os.environ.get("HEADATLAS_BENCH_STORE") or make_store(folder / "made"))
        for container in ("zarr", "hdf5"):
            convert_store(source.path, folder / container, container=container)
        n_examples = min(EXAMPLES, source.n_examples)
        modes = {MODES[0]: ours(folder / "zarr", n_examples), MODES[1]: ours(folder / "hdf5", n_examples)}
        modes |= padded(source, folder, n_examples)
        site = source.site()
        example_numbers = np.linspace(0, n_examples - 1, N_ITEMS).astype(int).tolist()
        heads = [(i % site.n_layers, (5 * i) % site.n_heads) for i in range(6)]
        check_same(modes, example_numbers[:3], heads[:1])
        timings = {
            "one example, all heads": timed({name: reads.example for name, reads in modes.items()}, example_numbers),
            "one example, one head": timed({name: reads.one_map for name, reads in modes.items()}, example_numbers),
            f"one head, all {n_examples:,} examples": timed({n: reads.head for n, reads in modes.items()}, heads),
            "open, then one example, all heads": timed({n: reads.fresh for n, reads in modes.items()}, example_numbers),
        }
        counts = sizes(folder, n_examples)
        opening, facts = measure_opening(folder)
        timings[f"open {N_SEGMENTS:,} segments"] = opening
    show(timings, counts)
    rows = [row for read, timing_by_mode in timings.items() for row in rows_of(read, timing_by_mode)]
    rows += [Row(f"size · {name}", size / 1e6, "MB") for name, size in counts.items()]
    report("reads", [*rows, *facts], shown=False, measured=described(source))


def make_store(path: Path) -> Path:
    """Capture MiniLM over EWT's development set; for `network` too."""
    from headatlas.pipeline.config import load_config
    from headatlas.pipeline.job.job_runner import run_job

    sentences = ewt_file(EWT_DEV, "HEADATLAS_BENCH_STORE to a store")
    run_job(load_config("demo", ["corpus.kind=conllu", f"corpus.path={sentences}", f"store.path={path}"]))
    return path


def ours(path: Path, n_examples: int) -> Reads:
    """Return the reads of a headatlas store."""
    store = open_store(path)
    examples = store.examples[:n_examples]

    site = store.site()
    ends = [
        (segment, int(segment.pair_offset(site.name)[min(segment.n_examples, n_examples - segment.first_example)]))
        for segment in store.segments
        if segment.first_example < n_examples
    ]

    def head(layer_head: tuple[int, int]) -> Maps:
        layer, head_index = layer_head
        return [
            decode_attention(
                read_pairs(segment, site, layer, slice(head_index, head_index + 1), slice(0, end))[0],
                store.spec.keep.attention or "",
            )
            for segment, end in ends
        ]

    return Reads(
        example=lambda i: [examples[i].attention().to_numpy()],
        one_map=lambda i: [examples[i].attention(3, 5).to_numpy()],
        head=head,
        fresh=lambda i: [open_store(path).examples[i].attention().to_numpy()],
    )


def padded(source: Store, folder: Path, n_examples: int) -> dict[str, Reads]:
    """Write the weights as one padded float16 array, as a file of numpy and in HDF5; returns the reads of each."""
    site = source.site()
    lengths = np.concatenate([np.diff(s.token_offset(site.query_sequence)) for s in source.segments])[:n_examples]
    longest = int(lengths.max())
    shape = (n_examples, site.n_layers, site.n_heads, longest, longest)
    array = np.lib.format.open_memmap(folder / "padded.npy", "w+", np.float16, shape)
    filters = {"gzip": {"compression": "gzip"}, "zstd": dict(hdf5plugin.Zstd(clevel=3))}
    for number in range(n_examples):
        n = lengths[number]
        array[number, :, :, :n, :n] = source.examples[number].attention().to_numpy()
    for name, options in filters.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            data = file.create_dataset("attention", shape, np.float16, chunks=(1, 1, 1, longest, longest), **options)
            for start in range(0, n_examples, 64):
                data[start : start + 64] = array[start : start + 64]
    array.flush()
    openers: dict[str, Callable[[], Float16[np.ndarray, "..."]]] = {
        "np.load": lambda: np.load(folder / "padded.npy", mmap_mode="r"),
        **{f"h5py, {name}": lambda name=name: h5py.File(folder / f"{name}.h5")["attention"] for name in filters},
    }
    return {name: cut(opener, lengths) for name, opener in openers.items()}


def cut(opener: Callable[[], Float16[np.ndarray, "..."]], lengths: np.ndarray) -> Reads:
    """Return the reads of a padded array; each cuts off the padding and converts to float32."""
    array, sizes = opener(), lengths.tolist()

    def example(i: int, data: Float16[np.ndarray, "..."] = array) -> Maps:
        return [data[i, :, :, : sizes[i], : sizes[i]].astype(np.float32)]

    def head(layer_head: tuple[int, int]) -> Maps:
        layer, head_index = layer_head
        return [array[i, layer, head_index, :n, :n].astype(np.float32) for i, n in enumerate(sizes)]

    return Reads(
        example=example,
        one_map=lambda i: [array[i, 3, 5, : sizes[i], : sizes[i]].astype(np.float32)],
        head=head,
        fresh=lambda i: example(i, opener()),
    )


def check_same(modes: dict[str, Reads], examples: list[int], heads: list[tuple[int, int]]) -> None:
    """Check that every mode reads the same numbers, within float16."""
    for read, items in (("example", examples), ("one_map", examples), ("head", heads), ("fresh", examples)):
        for item in items:
            flat = [np.concatenate([part.ravel() for part in getattr(reads, read)(item)]) for reads in modes.values()]
            for maps in flat[1:]:
                if maps.shape != flat[0].shape or float(np.abs(maps - flat[0]).max()) > 2**-11:
                    raise AssertionError(f"{read} of {item} differs between the modes")


def timed(works: dict[str, Callable], items: Sequence) -> dict[str, Timing]:
    """Time every read of every mode with a warm page cache."""
    for work in works.values():
        for item in items:
            work(item)
    timings = interleave({name: Mode(work) for name, work in works.items()}, items, REPEATS)
    for timing in timings.values():  # of one read
        timing.cpu_s[:] = [seconds / len(items) for seconds in timing.cpu_s]
        timing.wall_s[:] = [seconds / len(items) for seconds in timing.wall_s]
    return timings


def sizes(folder: Path, n_examples: int) -> dict[str, int]:
    """Return the bytes of the attention of each mode."""
    n_bytes = {}
    for name, container in zip(MODES, ("zarr", "hdf5"), strict=False):
        store = open_store(folder / container)
        path = f"{store.site().name}/attention"
        parts = [segment for segment in store.segments if segment.first_example < n_examples]
        n_bytes[name] = sum(segment.reader.stored_bytes(path) for segment in parts)
    files = {"np.load": "padded.npy", "h5py, gzip": "gzip.h5", "h5py, zstd": "zstd.h5"}
    return n_bytes | {name: (folder / file).stat().st_size for name, file in files.items()}


def measure_opening(folder: Path) -> tuple[dict[str, Timing], list[Row]]:
    """Measure the opening of 1,000 segments. Files of numpy and HDF5 have no manifest and are opened one by one."""
    many, arrays, files = folder / "many", folder / "arrays", folder / "files"
    write_many(many)
    for folder_of_files in (arrays, files):
        folder_of_files.mkdir()
    for number in range(N_SEGMENTS):
        np.save(arrays / f"{number}.npy", np.zeros(8, np.float16))
        with h5py.File(files / f"{number}.h5", "w") as file:
            file["attention"] = np.zeros(8, np.float16)
    works = {
        OURS: lambda _: open_store(many).n_examples,
        "np.load": lambda _: [np.load(arrays / f"{i}.npy", mmap_mode="r").shape for i in range(N_SEGMENTS)],
        "h5py, gzip": lambda _: [shape_in(files / f"{i}.h5") for i in range(N_SEGMENTS)],
    }
    numbers = manifest_numbers(many)
    n_bytes = sum((many / manifest_name(number)).stat().st_size for number in numbers)
    facts = [Row(f"manifests after {N_SEGMENTS:,} commits", n_bytes / 1e6, "MB", None, f"{len(numbers)} manifests")]
    return timed(works, [0]), facts


def shape_in(path: Path) -> tuple[int, ...]:
    """Return the shape of the array in a file."""
    with h5py.File(path) as file:
        dataset = file["attention"]
        assert isinstance(dataset, h5py.Dataset)
        return dataset.shape


def write_many(path: Path) -> None:
    """Write a store of 1,000 segments of one example of one token."""
    site = Site(name="encoder", n_layers=1, n_heads=1, n_kv_heads=1, d_head=1, causal=False, scaling=(1.0,),
                softcap=(None,), window=(None,))  # fmt: skip
    keep = Keep(attention=None, query_key=None, edges=None)
    spec = TraceSpec(sites=(site,), keep=keep, statistics=("entropy",))
    zero, ends = np.zeros(1, np.int32), np.array([0, 1], np.int64)
    tokens = TokenTable(ends, zero, zero, zero, zero, zero.astype(np.uint8), {}, ends, zero, zero, {})
    layouts = segment_layout(spec, {"source": np.array([1])})
    arrays = {name: np.zeros(layout.shape, layout.dtype) for name, layout in layouts.items()}
    writer = StoreWriter.create(
        path,
        spec=spec,
        provenance={},
        n_examples_planned=N_SEGMENTS,
        n_segments_planned=N_SEGMENTS,
        container="hdf5",
        threads=1,
    )
    for index in range(N_SEGMENTS):
        writer.write(index, index, SegmentTables([f"{index}"], [""], [None], [None], tokens={"source": tokens}), arrays)


def rows_of(read: str, timings: dict[str, Timing]) -> list[Row]:
    """Return the milliseconds of each mode, and the ratio of the others to ours."""
    rows = []
    for name, timing in timings.items():
        ms = sorted(1000 * seconds for seconds in timing.cpu_s)
        rows.append(Row(f"{read} · {name}", ms[len(ms) // 2], "ms CPU", (ms[0], ms[-1])))
        if name != OURS:
            ratio = speed_ratio(timings, OURS, name)
            rows.append(Row(f"{read} · {name} / ours", ratio.median, "times as long", ratio.spread, OURS))
    return rows


def show(timings: dict[str, dict[str, Timing]], counts: dict[str, int]) -> None:
    """Print one table with a line for each read and a column for each mode: milliseconds and the ratio to ours."""
    machine = machine_facts()
    table = Table(title=f"reads · {machine['cpu']}, {machine['cores']} cores, ms CPU", title_justify="left")
    for column in ("read", *MODES):
        table.add_column(column, justify="left" if column == "read" else "right")
    for read, timing_by_mode in timings.items():
        cells = []
        for name in MODES:
            if name not in timing_by_mode:
                cells.append("")
                continue
            ms = 1000 * sorted(timing_by_mode[name].cpu_s)[REPEATS // 2]
            cells.append(
                f"{ms:.3g}" if name == OURS else f"{ms:.3g} (×{speed_ratio(timing_by_mode, OURS, name).median:.2g})"
            )
        table.add_row(read, *cells)
    table.add_row("attention on disk, MB", *(f"{counts[name] / 1e6:.0f}" for name in MODES))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
