from __future__ import annotations

from pathlib import Path

import pytest

from studies.arms import ARMS
from studies.settings import Network, Settings
from tests.pipeline.tiny import write_project

CHANGES = {"measure.networks": 4, "importance.fit_images": 32, "importance.score_images": 32}


def tiny_settings(folder: Path, work: Path) -> Settings:
    """A study of the tiny network, timed by the fake backend: three arms, a speed-up, two seeds."""
    arms = tuple(arm for arm in ARMS if arm.name in ("ours", "random", "ours-post-training"))
    return Settings(
        work=work,
        networks=(Network("tiny", folder / "tiny.yaml", 2),),
        arms=arms,
        speedups=(1.3,),
        seeds=(0, 1),
        rates=(0.002, 0.006),
        changes=CHANGES,
    )


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny project."""
    folder = tmp_path_factory.mktemp("study")
    write_project(folder)
    return folder
