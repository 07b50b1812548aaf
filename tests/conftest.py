"""A finished run of the tiny project, made once for every room that needs one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a tiny project: ``tiny.yaml``, ``runs/tiny``. Do not change it."""
    from tests.pipeline import tiny

    folder = tmp_path_factory.mktemp("project")
    tiny.run(folder / "runs", tiny.write_project(folder))
    return folder


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """Returns a copy of the folder with the finished run ``tiny``, to do with as one likes."""
    return Path(shutil.copytree(finished / "runs", tmp_path / "runs"))
