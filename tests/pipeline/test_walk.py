"""Networks of timm through every stage, from one recipe to a bundle. Nothing is timed in truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.networks import NETWORKS
from benchmarks.walk import walk
from trt_layermerge.pipeline.options import STAGES

KNOWN = {network.name: network for network in NETWORKS}


@pytest.mark.filterwarnings("ignore")  # what exporters say of code that is not ours
@pytest.mark.parametrize(
    "name",
    [
        "timm:cspnext_tiny",
        "timm:ese_vovnet19b_slim_dw",
        "timm:mobilenetv3_small_050",
        "timm:regnetx_002",
        "timm:starnet_s050",
        "timm:tinynet_e",
    ],
)
def test_a_network_goes_through_every_stage(tmp_path: Path, name: str) -> None:
    row = walk(KNOWN[name], tmp_path, backend="fake")
    assert "crash" not in row and "refused" not in row, row
    assert row["stages"].keys() == {*STAGES, "package"}
    assert row["speedup"] >= 1.05
    assert row["error"] <= 1e-4  # of the certificate, in float32
    (bundle,) = (tmp_path / "runs" / "walk" / "deploy").iterdir()
    assert (bundle / "verify.py").is_file()
