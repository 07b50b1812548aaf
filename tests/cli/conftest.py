"""Fixtures of the command line's tests."""

from __future__ import annotations

import pytest

from tests.cli.fakes import FakePipeline, install


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """Returns a pipeline that records what it is asked, in the place of the real one."""
    return install(monkeypatch)
