"""Records of builds: what they say, and that the ones in the repository cover what they should."""

import itertools
from pathlib import Path

import pytest

from trt_layermerge.backends.tensorrt import EngineBuild
from trt_layermerge.core.jsonio import read_json, sha256_bytes
from trt_layermerge.deploy.sidecar import build_record

RECORDS = Path(__file__).parents[2] / "engines" / "records"
SHAPES = ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))


@pytest.fixture
def record():
    build = EngineBuild(
        plan=b"an engine",
        seconds=1.23456,
        library="tensorrt",
        version="10.3.0",
        log=("INFO: x", "WARNING: y", "WARNING: z"),
        precision="int8",
        inputs={"input": (-1, 3, 8, 8)},
        outputs={"logits": (-1, 5)},
        settings={"tf32": False},
        profile={"input": SHAPES},
    )
    return build_record(build, "merged", b"a model")


def test_what_is_recorded(record):
    assert record == {
        "network": "merged",
        "precision": "int8",
        "onnx_sha256": sha256_bytes(b"a model"),
        "onnx_bytes": 7,
        "plan_sha256": sha256_bytes(b"an engine"),
        "plan_bytes": 9,
        "seconds": 1.235,
        "library": "tensorrt",
        "library_version": "10.3.0",
        "inputs": {"input": [-1, 3, 8, 8]},
        "outputs": {"logits": [-1, 5]},
        "profile": {"input": [list(shape) for shape in SHAPES]},
        "settings": {"tf32": False},
        "warnings": 2,
    }


def test_the_build_without_a_gpu_covers_every_network_precision_and_batch():
    builds = read_json(RECORDS / "rtx-cpu-build.json", "builds")["builds"]
    networks = ("glyphs resnet20", "glyphs mobilenet_v2")
    networks += ("torchvision resnet34", "torchvision mobilenet_v2")
    kinds = (("original", "merged"), ("fp32", "fp16", "int8"), ("static", "dynamic"))
    names = ("model", "network", "precision", "batch")
    found = [tuple(row[name] for name in names) for row in builds]
    assert sorted(found) == sorted(itertools.product(networks, *kinds))
    for row in builds:
        assert len(row["plan_sha256"]) == len(row["onnx_sha256"]) == 64
        assert row["plan_bytes"] > 100_000
        assert row["seconds"] > 0
        assert (row["inputs"]["input"][0] == -1) == (row["batch"] == "dynamic")
        assert bool(row["profile"]) == (row["batch"] == "dynamic")
