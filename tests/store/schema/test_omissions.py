from headatlas.store.schema.omissions import (
    LISTED_NAMES,
    MAX_REASONS,
    Omission,
    Omissions,
    count_by_reason,
    read_omissions,
)


def test_omissions_of_one_kind_and_reason_are_added():
    rows = Omissions()
    for number in range(30):
        rows.add(Omission(what="words", n=2, reason=f"after token {number}", names=(f"w{number}",), n_examples=1))
    rows.add(Omission(what="columns", n=1, reason="a list is not stored", names=("tags",)))
    words, columns = rows
    assert (words.n, words.n_examples, len(words.names)) == (60, 30, LISTED_NAMES)
    assert str(words).startswith("60 words of 30 examples left out: after token 0 (w0, w1, ")
    assert str(words).endswith(", w19, …)")
    assert str(columns) == "1 column left out: a list is not stored (tags)"
    assert read_omissions({"left_out": rows.to_json()}) == (words, columns)


def test_reasons_with_other_numbers_are_one():
    rows = count_by_reason(
        "examples", [("a", "600 tokens, at most 512"), ("b", "1,200 tokens, at most 512"), ("c", "x")]
    )
    assert [str(row) for row in rows] == [
        "2 examples left out: 600 tokens, at most 512 (a, b)",
        "1 example left out: x (c)",
    ]


def test_a_forged_list_is_no_list():
    for value in (None, 3, "records", [1], [{"what": "words", "n": -1, "reason": ""}], {"n": 1}):
        assert read_omissions({"left_out": value}) == ()
    long = [{"what": "w" * 10**6, "n": 1, "reason": "r" * 10**6, "names": ["n" * 10**6]}]
    (row,) = read_omissions({"left_out": long})
    assert len(str(row)) < 1000


def test_the_number_of_reasons_is_limited():
    rows = Omissions(Omission(what="records", n=1, reason=f"not {'x' * i}", names=(f"{i}",)) for i in range(500))
    assert len(rows) == MAX_REASONS + 1
    assert sum(row.n for row in rows) == 500
    assert str(list(rows)[-1]).startswith(f"{500 - MAX_REASONS} records left out: other reasons ({MAX_REASONS}, ")
