"""How tests are spread over processes."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that share a module's fixture in one process: elsewhere it would be made again."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group"):
            continue
        known = item._fixtureinfo.name2fixturedefs
        if any(known[name][-1].scope == "module" for name in item.fixturenames if name in known):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
