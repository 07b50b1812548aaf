"""Rounding simulated in torch against ONNX Runtime's, and training with it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trt_layermerge.backends import get_backend
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.finetune.evaluate import accuracy
from trt_layermerge.finetune.loop import finetune
from trt_layermerge.finetune.qat import RoundedLayer, RoundedNet, qat_recipe, round_weight
from trt_layermerge.quantize.qdq import quantize_model
from trt_layermerge.quantize.ranges import fixed_ranges

COARSE = 400.0
"""A range so wide that the activations within the network fall on a handful of int8's steps."""


class Residual(nn.Module):
    """A stem, two branches that read the same map, an addition, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.left(x)) + torch.relu(self.right(x)))
        return self.head(x.mean((2, 3)))


class Blobs:
    """Images of four classes: one bright quarter each."""

    class_names = ()
    labelled = True

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % 4
        images = rng.normal(0, 1, (count, 3, 8, 8)).astype(np.float32)
        for image, label in zip(images, labels, strict=True):
            top, left = 4 * (label // 2), 4 * (label % 2)
            image[label % 3, top : top + 4, left : left + 4] += 1.5
        self.images, self.labels = torch.from_numpy(images), torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


def seeded() -> Residual:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = Residual()
        with torch.no_grad():
            network.norm.weight.uniform_(-1.5, 1.5)
            network.norm.running_mean.uniform_(-1, 1)
            network.norm.running_var.uniform_(0.5, 2)
    return network.eval()


def layers_of(
    network: nn.Module, images: Tensor, magnitude: float, brightest: float | None = None
) -> list[RoundedLayer]:
    """Returns the rounded layers by hand: which value each reads is told, not searched for.

    ``brightest`` is the magnitude of the images, by default that of everything.
    """
    step, pixel = (float(np.float16(m / 127)) for m in (magnitude, brightest or magnitude))
    with torch.no_grad():
        stem = torch.relu(network.stem(images))
        left, right = network.norm(network.left(stem)), torch.relu(network.right(stem))
        pooled = torch.relu(left + right).mean((2, 3))
    folded = network.left.weight * network.norm.weight.reshape(-1, 1, 1, 1)
    return [
        RoundedLayer("head", "Gemm", (pooled,), network.head.weight, {0: step}),
        RoundedLayer("right", "Conv", (stem,), network.right.weight, {0: step}),
        RoundedLayer("left", "Conv", (stem,), folded, {0: step}),
        RoundedLayer("stem", "Conv", (images,), network.stem.weight, {0: pixel}),
        RoundedLayer("sum", "Add", (left, right), None, {1: step}),
    ]


def in_onnx_runtime(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with get_backend("onnxruntime").open(model) as runner:
        return runner.infer({"input": images})["logits"]


@pytest.mark.parametrize("magnitude", [6.0, 40.0])
@pytest.mark.parametrize(("normed", "share"), [(False, 0.95), (True, 0.75)])
def test_rounding_is_that_of_the_qdq_model(magnitude: float, normed: bool, share: float) -> None:
    """Up to values on the edge between two steps, which move few logits by less than rounding.

    Behind a batch normalisation there are more of them: the scales of folded weights are rounded to
    float16 after the folding.
    """
    network, images = seeded(), Blobs(64, 1).images
    if not normed:
        network.norm = nn.BatchNorm2d(8, eps=0.0).eval()
    model = export_bytes(network, images)
    ranges = dict.fromkeys(fixed_ranges(model), magnitude)
    # The same places: everything that a convolution, the head and the addition's shortcut reads.
    assert len(ranges) == 4
    expected = in_onnx_runtime(quantize_model(model, ranges), images.numpy())
    exact = in_onnx_runtime(model, images.numpy())
    rounded = RoundedNet(network, layers_of(network, images, magnitude), images)
    with torch.no_grad():
        found = rounded(images).numpy()
    assert np.mean(np.abs(exact - expected) < 1e-4) < 0.1  # negative control
    assert np.mean(np.abs(found - expected) < 1e-5) > share
    assert np.abs(found - expected).max() < np.abs(exact - expected).max()


def test_a_weight_is_rounded_by_channel() -> None:
    weight = torch.tensor([[127.0, 3.4, -0.6], [0.0, 0.0, 0.0], [-2.0, 1.0, 0.25]])
    with_gradient = weight.clone().requires_grad_()
    found = round_weight(with_gradient)
    step = float(np.float16(2 / 127))
    expected = torch.tensor(
        [
            [127.0, 3.0, -1.0],
            [0.0, 0.0, 0.0],
            [-127 * step, round(1 / step) * step, round(0.25 / step) * step],
        ]
    )
    assert torch.equal(found, expected)
    found.sum().backward()
    assert torch.equal(with_gradient.grad, torch.ones(3, 3))


def test_a_layer_that_is_not_in_the_network_is_refused_by_name() -> None:
    network, images = seeded(), Blobs(4, 1).images
    *others, added = layers_of(network, images, 6.0)
    strange = replace(added, inputs=(added.inputs[0] * 1.01, added.inputs[1]))
    with pytest.raises(UnsupportedModelError, match=r"1 of 5 .*\(sum\).*qat_epochs=0"):
        RoundedNet(network, [*others, strange], images)


def test_what_is_not_told_is_not_rounded() -> None:
    network, images = seeded(), Blobs(4, 1).images
    with torch.no_grad():
        assert torch.equal(RoundedNet(network, [], images)(images), network(images))


def trained(start: nn.Module, data: Blobs, epochs: int) -> RoundedNet:
    network = copy.deepcopy(start)
    images = data.images[:4]
    rounded = RoundedNet(network, layers_of(network, images, COARSE, 4.0), images)
    finetune(rounded, data, None, qat_recipe(epochs, 0, batch=32, lr=2e-3), teacher=start)
    return rounded


def test_training_mends_what_coarse_rounding_broke_and_repeats_itself() -> None:
    data, start = Blobs(256, 0), seeded()
    finetune(start, data, None, qat_recipe(8, 0, batch=32, lr=1e-2, distill_weight=0.0))
    exact = accuracy(start, data)
    broken = trained(start, data, epochs=0)
    before, after = accuracy(broken, data), accuracy(trained(start, data, epochs=6), data)
    assert before < exact - 0.1
    assert after > before + 0.05

    first, second = (trained(start, data, epochs=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["network.stem.weight"], start.state_dict()["stem.weight"])


def test_the_teacher_and_the_start_are_left_alone() -> None:
    data, start = Blobs(64, 0), seeded()
    before = copy.deepcopy(start.state_dict())
    trained(start, data, epochs=1)
    assert all(torch.equal(before[name], value) for name, value in start.state_dict().items())
