"""An error message names the location of the error once."""

import pytest

from headatlas.store.errors import FormatError, NotFoundError, located


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("it is short", "traces, segment 0, layer 2: it is short"),
        ("traces, segment 0: edge_key is short", "traces, segment 0, layer 2: edge_key is short"),
        ("traces: edge_key is short", "traces, segment 0, layer 2: edge_key is short"),
        ("traces, segment 0, layer 2, head 1: it is short", "traces, segment 0, layer 2, head 1: it is short"),
        ("traces, segment 10: it is short", "traces, segment 0, layer 2: traces, segment 10: it is short"),
    ],
)
def test_the_longest_location_is_named_once(message, expected):
    with pytest.raises(FormatError) as caught, located("traces, segment 0, layer 2"):
        raise FormatError(message)
    assert str(caught.value) == expected


def test_other_errors_pass():
    with pytest.raises(KeyError, match=r"^'key'$"), located("traces"):
        raise KeyError("key")


def test_its_kind_and_arguments_stay():
    with pytest.raises(NotFoundError) as caught, located("traces"):
        raise NotFoundError("no head 3", 3)
    assert caught.value.args == ("traces: no head 3", 3)
