"""``docs/files.md``: what a run leaves is in the table."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.pages import text_of
from trt_layermerge.pipeline.options import PACKAGE, STAGES

TABLE = [
    (row[1].strip(" `"), re.findall(r"`([^`]+)`", row[2]))
    for line in text_of("docs/files.md").splitlines()
    if len(row := line.split("|")) == 5
][2:]
LISTED = {name.rstrip("/") for _, names in TABLE for name in names}

NOT_IN_EVERY_RUN = {
    "debug",
    "deploy",
    "engines",
    "failed.json",
    "package.json",
    "plans.html",
    "plans.md",
}
NOT_IN_EVERY_RUN |= {"original.int8.onnx", "model.int8.onnx"}


def test_what_a_run_leaves_is_listed(finished: Path) -> None:
    left = {path.name for path in (finished / "runs" / "tiny").iterdir() if path.name[0] != "."}
    assert left <= LISTED
    assert left >= LISTED - NOT_IN_EVERY_RUN


def test_every_stage_is_listed_in_its_order() -> None:
    named = [stage for stage, _ in TABLE if stage and stage != "all"]
    assert named == [*STAGES[:-1], PACKAGE, STAGES[-1], "run"]
