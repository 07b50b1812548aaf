"""What README.md shows in Python runs; ``tests/docs`` checks the rest of what pages say."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision

import trt_layermerge
from tests.docs.pages import blocks

QUICK = {
    "measure": {"backend": "fake", "rounds": 3, "networks": 3},
    "search": {
        "limits": {"max_units": 2},
        "finalists": 2,
        "loops": 1,
        "samples": 0,
        "race_steps": 0,
    },
    "importance": {"fit_images": 8, "score_images": 8},
    "finetune": {"preset": "none"},
}
"""Settings under which the whole way takes seconds."""


@pytest.mark.parametrize("text", blocks("README.md", "python"))
def test_python_examples_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    given = {
        "__name__": "readme",
        "model": torchvision.models.resnet18(num_classes=4).eval(),
        "train_loader": [(images, labels)],
        "test_loader": [(images, labels)],
        "example_inputs": images[:1],
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        trt_layermerge, "compress", partial(trt_layermerge.compress, settings=QUICK)
    )
    exec(compile(text, "README.md", "exec"), given)
    assert capsys.readouterr().out.startswith("True ")
    assert (tmp_path / "model.onnx").is_file()
