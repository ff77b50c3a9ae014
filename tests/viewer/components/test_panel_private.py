"""The guard for members of Panel that are not public: it names what the code uses, and it fails if a member is gone."""

from __future__ import annotations

import ast
from pathlib import Path

import panel as pn
import pytest
from panel.custom import JSComponent

import headatlas.viewer
from headatlas.viewer.components import panel_private

VIEWER = Path(headatlas.viewer.__path__[0])


def members_of_panel() -> set[str]:
    """Return the private names in `components/` that are attributes of a Panel component."""
    names: set[str] = set()
    for path in (VIEWER / "components").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Name):
                names.add(node.id)
    spacer = pn.Spacer()
    return {
        name
        for name in names
        if name.startswith("_") and not name.startswith("__") and (hasattr(JSComponent, name) or hasattr(spacer, name))
    }


def test_every_private_member_in_the_components_is_listed():
    members = {*panel_private.CLASS_MEMBERS["panel.custom:JSComponent"], *panel_private.INSTANCE_MEMBERS}
    assert members_of_panel() == members


def test_the_installed_versions_have_all_members():
    assert panel_private.missing_members(pn.Spacer()) == []


def test_a_missing_member_is_an_error_that_names_versions(monkeypatch):
    monkeypatch.setattr(panel_private, "INSTANCE_MEMBERS", ("_models", "_gone"))
    monkeypatch.setitem(panel_private.FUNCTIONS, "panel.io.model", ("gone_too",))
    with pytest.raises(ImportError, match=r"lack Spacer\._gone, panel\.io\.model\.gone_too.*works with panel 1\.9"):
        panel_private.check_members()
