"""What libraries print past Python stays out of the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).parents[2]


def said(*arguments: str) -> str:
    """Returns what a process of Python writes to both streams, warnings of C++ too."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_warnings_of_onnx_runtime_stay_out_of_the_terminal(finished: Path, tmp_path: Path) -> None:
    model = onnx.load(finished / "runs" / "tiny" / "original.onnx")
    unused = numpy_helper.from_array(np.zeros(3, np.float32), "unused")
    model.graph.initializer.append(unused)
    path = tmp_path / "warns.onnx"
    onnx.save(model, path)
    opened = f"import onnxruntime; onnxruntime.InferenceSession({str(path)!r})"
    assert "[W:onnxruntime" in said("-c", opened)  # it does warn
    recipe = (finished / "tiny.yaml").read_text().replace("npz:", f"npz:{finished}/")
    recipe = recipe.replace('"nets.py:tiny", weights: tiny.safetensors', f'"{path}"')
    recipe = recipe.replace("backend: fake", "backend: onnxruntime, precision: int8")
    (tmp_path / "warns.yaml").write_text(recipe.replace("speedup: 1.3", "budget_ms: 1000"))
    words = ["run", f"{tmp_path}/warns.yaml", "--runs-dir", f"{tmp_path}/runs"]
    quick = ("search.kinds=[identity]", "search.samples=0", "search.race_steps=0")
    for key in (*quick, "finetune.preset=none", "verify.never_slower=false"):
        words += ["--set", key]
    out = said("-m", "trt_layermerge", *words)
    assert "✓ verify" in out and "onnxruntime:" not in out and "[W:" not in out
