"""Table of the faults that the store was tested with, printed after the tests.

The counts of a test travel with its report, so that the table is complete if several processes share the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

_PROPERTY = "fault"
_TABLE = pytest.StashKey[dict[str, tuple[int, int]]]()


@pytest.fixture
def count_fault(request: pytest.FixtureRequest) -> Callable[[str, int, int], None]:
    """Return a function that adds a row to the table: fault, cases, violations."""

    def count(name: str, cases: int, violations: int) -> None:
        request.node.user_properties.append((_PROPERTY, (name, cases, violations)))

    return count


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name): the test is one case of the table of faults")
    config.stash[_TABLE] = {}
    config.pluginmanager.register(_Reports(config.stash[_TABLE]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    mark = item.get_closest_marker("fault")
    if mark is None:
        return (yield)
    parameters = getattr(item, "callspec", None)
    container = parameters.params.get("container") if parameters else None
    name = f"{mark.args[0]} ({container})" if container else mark.args[0]
    violations = 1
    try:
        result = yield
        violations = 0
        return result
    finally:
        item.user_properties.append((_PROPERTY, (name, 1, violations)))


class _Reports:
    """Collector of the counts in the reports of all processes."""

    def __init__(self, table: dict[str, tuple[int, int]]) -> None:
        self._table = table

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for key, row in report.user_properties:
            if key == _PROPERTY:
                name, cases, violations = row
                before = self._table.get(name, (0, 0))
                self._table[name] = (before[0] + cases, before[1] + violations)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash[_TABLE]
    if not table:
        return
    terminalreporter.section("faults the store was put through")
    width = max(map(len, table))
    terminalreporter.write_line(f"{'fault':{width}}  {'cases':>6}  violations")
    rows = [*sorted(table.items()), ("all", tuple(sum(column) for column in zip(*table.values(), strict=True)))]
    for name, (cases, violations) in rows:
        terminalreporter.write_line(f"{name:{width}}  {cases:>6}  {violations:>10}")
