"""The shared cache: limited in bytes, one computation for each key."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, Event

import numpy as np
import pytest

from headatlas.store.files.byte_cache import ByteCache, size_of


def test_the_least_recently_used_goes_first_and_the_bound_holds():
    cache = ByteCache(1_000)
    for key in "abc":
        cache.get(key, lambda: np.zeros(300, np.uint8))
        assert cache.n_bytes <= 1_000
    assert len(cache) == 2
    cache.get("b", lambda: pytest.fail("b was kept"))
    cache.get("d", lambda: np.zeros(300, np.uint8))
    cache.get("b", lambda: pytest.fail("b was used last"))
    calls = []
    cache.get("c", lambda: calls.append(1))
    assert calls == [1]


def test_what_does_not_fit_is_returned_and_not_kept():
    cache = ByteCache(100)
    assert cache.get("x", lambda: np.ones(1_000)).sum() == 1_000
    assert (len(cache), cache.n_bytes) == (0, 0)


def test_threads_compute_a_key_once():
    cache, started, release, calls = ByteCache(10_000), Barrier(5), Event(), []

    def ask():
        started.wait()
        return cache.get("k", make)

    def make():
        calls.append(1)
        release.wait(60)
        return "value"

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask) for _ in range(4)]
        started.wait()
        release.set()
        assert {answer.result() for answer in answers} == {"value"}
    assert calls == [1]


def test_an_error_is_raised_and_not_kept():
    cache = ByteCache(100)
    with pytest.raises(ZeroDivisionError):
        cache.get("k", lambda: 1 // 0)
    assert cache.get("k", lambda: 7) == 7


def test_the_size_counts_arrays_inside_objects():
    @dataclass
    class Box:
        array: np.ndarray

    assert size_of({"box": [Box(np.zeros(1_000))]}) > 8_000
