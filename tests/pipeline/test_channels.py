"""Networks of grey images, and of more channels than colours, from the recipe to the bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipeline import tiny
from trt_layermerge.core.preprocess import Preprocess, for_channels
from trt_layermerge.data import open_data
from trt_layermerge.data.augment import parse_augment
from trt_layermerge.data.images import Framing
from trt_layermerge.deploy.bundle.folder import read_bundle
from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.recipe import load_recipe

RECIPE = """\
model: {{name: "nets.py:tiny", input: [1, {channels}, 16, 16]}}
data: {{train: npz:train.npz, test: npz:test.npz{preprocess}}}
measure: {{backend: fake, rounds: 3, networks: 2}}
search: {{speedup: 1.2, limits: {{max_units: 2, max_kernel: 3, kernels: [1, 3]}},
         finalists: 1, loops: 1, samples: 0, race_steps: 0}}
importance: {{fit_images: 16, score_images: 16}}
finetune: {{preset: none}}
build: {{engine: none}}
package: {{targets: [{targets}]}}
"""


def project(folder: Path, channels: int, targets: str, preprocess: str = "") -> Path:
    """Writes a network for so many channels with random weights, images, and a recipe."""
    nets = tiny.NETS.replace("conv_bn(3, 8, 3)", f"conv_bn({channels}, 8, 3)")
    (folder / "nets.py").write_text(nets)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        images = rng.integers(0, 256, (32, 16, 16, channels), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=np.arange(32) % 4)
    text = RECIPE.format(channels=channels, targets=targets, preprocess=preprocess)
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


@pytest.mark.parametrize(
    ("channels", "targets"), [(1, "plain, triton, deepstream"), (4, "plain, triton")]
)
def test_a_run_takes_as_many_means_as_channels(tmp_path: Path, channels: int, targets: str) -> None:
    summary, _ = tiny.run(tmp_path / "runs", project(tmp_path, channels, targets))
    mean = sum((0.485, 0.456, 0.406)) / 3
    assert summary["preprocess"]["mean"] == pytest.approx([mean] * channels)
    assert summary["input"]["shape"] == [1, channels, 16, 16]
    assert "are assumed" in summary["notes"][1]
    for target in targets.split(", "):
        bundle = tmp_path / "runs" / "tiny" / "deploy" / target
        command = [sys.executable, str(bundle / "verify.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        contents = read_bundle(bundle)[1]
        assert len(contents.preprocess.std) == contents.interface.image[0] == channels
        readme = (bundle / "README.md").read_text()
        assert "RGB" not in readme and ("grey" if channels == 1 else "4 channels") in readme
    if channels == 1:
        config = (bundle / "config_infer.txt").read_text()
        assert "model-color-format=2\n" in config and "offsets=0.0\n" in config


def test_means_that_do_not_fit_the_channels_are_named(tmp_path: Path) -> None:
    path = project(tmp_path, 1, "plain", ", preprocess: {mean: [0.5, 0.5, 0.5], std: [0.2]}")
    with pytest.raises(UsageError, match=r"preprocess\.mean has 3 values.*has 1 channels"):
        load_recipe(path, {})
    fitting = load_recipe(path, {"data.preprocess.mean": [0.5]})
    assert fitting.data.preprocess.build() == Preprocess(1 / 255, (0.5,), (0.2,))


def test_the_average_stands_for_other_channels() -> None:
    assert for_channels((0.1, 0.2, 0.3), 3) == (0.1, 0.2, 0.3)
    assert for_channels((0.1, 0.2, 0.3), 1) == (pytest.approx(0.2),)
    assert for_channels((0.5,), 2) == (0.5, 0.5)


def test_image_files_of_a_grey_network_are_grey(tmp_path: Path) -> None:
    """A colour becomes its luma, ITU-R 601: 0.299 R + 0.587 G + 0.114 B."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (9, 7), (200, 100, 50)).save(tmp_path / "a" / "colour.png")
    Image.new("L", (8, 8), 90).save(tmp_path / "a" / "grey.png")
    grey = Preprocess(1 / 255, (0.5,), (0.25,))
    data = open_data(f"imagefolder:{tmp_path}", grey, framing=Framing((4, 4)))
    images, _ = data.batch(torch.arange(2))
    assert images.shape == (2, 1, 4, 4)
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert images[0].unique().item() == pytest.approx((luma / 255 - 0.5) / 0.25, abs=0.01)
    assert images[1].unique().item() == pytest.approx((90 / 255 - 0.5) / 0.25, abs=1e-6)
    augmentation = parse_augment(["crop:0.5", "jitter:0.4", "randaugment:9", "erase:1"], data)
    assert augmentation is not None
    image, _ = augmentation.image(data, 0, seed=1)
    assert image.shape == (1, 4, 4)
    with pytest.raises(UsageError, match="for a network of 4 give npz:FILE"):
        open_data(
            f"imagefolder:{tmp_path}",
            Preprocess(1.0, (0.0,) * 4, (1.0,) * 4),
            Framing((4, 4)),
        )


def test_colours_are_changed_where_there_are_colours(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4, 4), np.uint8))
    data = open_data(f"npz:{tmp_path / 'x.npz'}", Preprocess(1.0, (0.0,) * 4, (1.0,) * 4))
    with pytest.raises(UsageError, match="jitter is for grey or RGB images"):
        parse_augment(["jitter:0.4"], data)
