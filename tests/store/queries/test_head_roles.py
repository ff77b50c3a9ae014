"""Roles of heads: planted heads have their role, and each role is the search of its pattern against its null."""

import json

import numpy as np
import pytest
from treebank_store import write_trees
from typer.testing import CliRunner

from headatlas.store.commands.roles import app
from headatlas.store.errors import ConfigError
from headatlas.store.queries.evidence.search_evidence import compute_evidence
from headatlas.store.queries.head_roles import ROLES, head_roles
from headatlas.store.queries.pattern_search import search

TREE = [(2, "det"), (2, "amod"), (3, "nsubj"), (-1, "root"), (5, "det"), (3, "obj"), (3, "punct")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Store of rotated trees. Head 0.0 looks at the previous token, 0.1 at the governor, 1.0 at the first token."""
    trees = [[((g + i) % 7 if g >= 0 else -1, r) for g, r in np.roll(np.array(TREE, object), i, axis=0).tolist()] for i in range(36)]  # fmt: skip
    rng = np.random.default_rng(3)

    def attention_of(tokens):
        n = len(tokens)
        weights = rng.dirichlet(np.ones(n), size=(2, 3, n)) * 0.2
        governor = tokens.word_columns["head"].to_list()
        for query in range(n):
            word = int(tokens.word[query])
            target = 1 + governor[word] if word >= 0 and governor[word] >= 0 else 0
            for head, key in ((0, max(query - 1, 0)), (1, target)):
                weights[0, head, query, key] += 0.8
            weights[1, 0, query, 0] += 0.8
        return weights / weights.sum(axis=-1, keepdims=True)

    return write_trees(tmp_path_factory.mktemp("roles") / "trees", [trees[:18], trees[18:]], attention_of)[0]


def test_planted_heads_have_their_roles(store):
    answer = store.roles()
    heads = {role.role.name: role.ranked() for role in answer.roles}
    assert heads["previous_token"] == [(0, 0)]
    assert heads["first_token"] == [(1, 0)]
    assert heads["object_of"][0] == heads["subject_of"][0] == heads["determiner_of"][0] == (0, 1)
    assert set(answer.table()["role"]) <= {role.name for role in ROLES}
    left_out = [line.partition(":")[0] for line in answer.left_out]
    assert {*heads, *left_out} == {role.name for role in ROLES}


def test_a_role_is_its_pattern_against_its_null(store):
    for role in head_roles(store, least_mass=0.1).roles:
        result = search(store, role.role.pattern.filled)
        q = compute_evidence(result, nulls=(role.role.null,)).null.heads["q_value"].to_numpy()
        np.testing.assert_array_equal(role.is_found, (q < 0.05) & (result.heads["mass"].to_numpy() >= 0.1))
    with pytest.raises(ConfigError, match="the least mass is 2"):
        head_roles(store, least_mass=2)


def test_command_lists_the_same_heads(store):
    result = CliRunner().invoke(app, [store.location, "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    expected = store.roles().table()
    assert [(r["role"], r["layer"], r["head"]) for r in answer["roles"]] == list(
        expected[["role", "layer", "head"]].itertuples(index=False, name=None)
    )
    assert (answer["units"], answer["left_out"]) == (store.roles().n_units, [])
    table = CliRunner().invoke(app, [store.location, "--top", "1"])
    assert "Previous token" in table.stdout
    assert "0.0" in table.stdout
