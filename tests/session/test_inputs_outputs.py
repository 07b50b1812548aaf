"""Several inputs, and nested or several outputs, the whole way on live objects.

Every step's figures are taken anew here, from the untouched network, by other means.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import segmentation

import trt_layermerge as tlm
from tests.nets import Basic, conv_bn, randomise
from trt_layermerge.core.jsonio import read_json
from trt_layermerge.core.outputs import named
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.session.images import calibration_of, images_of

FEW: dict[str, Any] = {
    "measure": {"rounds": 3, "networks": 2},
    "search": {
        "limits": {"max_units": 2, "max_kernel": 3, "kernels": [1, 3]},
        "finalists": 2,
        "loops": 1,
        "samples": 2,
        "race_steps": 2,
    },
    "importance": {"fit_images": 8, "score_images": 8},
    "build": {"engine": "none"},
}
SIZE = 24


class Trunk(nn.Module):
    """Three residual blocks on a stem."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem, self.norm = conv_bn(channels, 8, 3, 2)
        self.blocks = nn.Sequential(Basic(8, 8), Basic(8, 8), Basic(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(torch.relu(self.norm(self.stem(x))))


class Segmenter(nn.Module):
    """A class map of the image's size, and a coarser one, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head, self.coarse = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.trunk(x)
        whole = F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear")
        return {"out": whole, "aux": self.coarse(y)}


class Detector(nn.Module):
    """Three maps of different sizes in a list, as a YOLO has them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.heads = nn.ModuleList(nn.Conv2d(8, 12, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.trunk(x)
        return [head(F.avg_pool2d(y, 2**i)) for i, head in enumerate(self.heads)]


class TwoInputs(nn.Module):
    """An image and some numbers beside it, to a dict of logits and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.more = Trunk(), nn.Linear(4, 8)
        self.head, self.size = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, image: Tensor, numbers: Tensor) -> dict[str, Any]:
        y = self.trunk(image).mean((2, 3)) + self.more(numbers)
        return {"label": self.head(y), "rest": [self.size(y)]}


class Restorer(nn.Module):
    """An image to a better one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Basic(8, 8), Basic(8, 8))
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.blocks(torch.relu(self.first(x))))


class Again:
    """Batches that can be passed over again."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def images(count: int, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def whole_way(session: tlm.Session, data: Any, speedup: float = 1.1) -> dict[str, Any]:
    """Goes from measuring to verifying; returns what was verified."""
    session.measure()
    session.score(data)
    session.search(speedup=speedup)
    session.relax()
    session.repair()
    session.merge()
    session.export()
    session.quantize()
    session.bench()
    return session.verify(data)[0]


def run_file(path: Path, inputs: Iterable[Tensor]) -> dict[str, Any]:
    """Returns what ONNX Runtime makes of one row after the other."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    rows = [
        session.run(None, {n: part.numpy()[None] for n, part in zip(names, row, strict=True)})
        for row in zip(*inputs, strict=True)
    ]
    outputs = [np.concatenate(column) for column in zip(*rows, strict=True)]
    return dict(zip((v.name for v in session.get_outputs()), outputs, strict=True))


def check_file(session: tlm.Session, inputs: tuple[Tensor, ...]) -> None:
    """Checks that the file puts out what the merged network does, under its names."""
    found = run_file(session.folder / "model.onnx", inputs)
    with torch.no_grad():
        expected = named(session.merged(*inputs))
    assert list(found) == list(session.outputs)
    for name, value in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-4)


def test_a_dict_of_class_maps_goes_the_whole_way() -> None:
    model = randomise(Segmenter())
    told: list[str] = []
    example = torch.zeros(1, 3, SIZE, SIZE)
    settings = {**FEW, "task": "segmentation"}
    session = tlm.Session(model, example, backend="fake", settings=settings, note=told.append)
    found = whole_way(session, [images(8, 0), images(8, 1)])
    assert session.outputs == {"out": "classes", "aux": "classes"}
    assert session.plan.changed and session.certificate.ok
    assert any("out (1, 5, 24, 24) as classes, aux (1, 5, 12, 12)" in note for note in told)
    check_file(session, (images(3, 2),))
    # Agreement is that of the pixels, of the output that agrees least.
    x = torch.cat([images(8, 0), images(8, 1)])
    with torch.no_grad():
        ours, theirs = (named(net(x)) for net in (model, session.merged))
    shares = []
    for name in ours:
        a, b = ours[name].double(), theirs[name].double()
        near = (a - b).square().sum(1).sqrt() <= 0.5 * a.square().sum(1).mean().sqrt()
        shares.append(((a.argmax(1) == b.argmax(1)) & near).double().mean((1, 2)))
    assert found["agreement"] == pytest.approx(float(torch.stack(shares).amin(0).mean()), abs=1e-6)
    assert 0 < found["agreement"] < 1
    assert set(found["comparisons"][0]["outputs"]) == {"out", "aux"}
    assert found["accuracy"]["merged"] is None and found["failed_gate"] is None


def test_importance_of_class_maps_is_the_divergence_of_every_pixel() -> None:
    model = randomise(Segmenter())
    settings = {**FEW, "task": "segmentation"}
    session = tlm.Session(model, torch.zeros(1, 3, SIZE, SIZE), backend="fake", settings=settings)
    session.measure()
    table = session.score([images(16)])
    gone = next(c for c in session.candidates if c.kind == "identity" and c in table)
    assert table[gone].delta < 0
    # The same candidate, scored by hand on the images that were not fitted on.
    x = images_of(calibration_of([images(16)], 8, 8, 0)[1])
    network = tlm.relax(model, session.graph, tlm.MergePlan.of(session.graph, [gone])).double()
    parts = []
    with torch.no_grad():
        ours, theirs = named(model.double()(x.double())), named(network(x.double()))
    for name in ours:
        p, q = (v[name].log_softmax(1).permute(0, 2, 3, 1).reshape(-1, 5) for v in (ours, theirs))
        parts.append(float((p.exp() * (p - q)).sum(1).mean()))
    assert -table[gone].delta == pytest.approx(sum(parts) / 2, rel=1e-3)


def test_masks_are_labels_of_every_pixel() -> None:
    model = randomise(Segmenter())
    x, masks = images(12), torch.randint(5, (12, SIZE, SIZE))
    masks[:, :4] = 255
    batches = [(x[:6], masks[:6]), (x[6:], masks[6:])]
    session = tlm.Session(
        model, torch.zeros(1, 3, SIZE, SIZE), backend="fake", settings=FEW, seed=1
    )
    session.use(tlm.MergePlan.of(session.graph, []))
    session.relax()
    history = session.train(batches, val=batches, epochs=1, batch=6)
    session.merge()
    session.export()
    found, _ = session.verify(batches)
    for name, network in (("original", model), ("merged", session.merged)):
        with torch.no_grad():
            hits = network(x)["out"].argmax(1) == masks
        known = masks != 255
        assert found["accuracy"][name] == pytest.approx(float(hits[known].double().mean()))
    assert history is not None
    assert history.val_accuracy == pytest.approx(found["accuracy"]["merged"], abs=2e-3)


def test_three_maps_in_a_list_go_the_whole_way() -> None:
    session = tlm.Session(
        randomise(Detector()), torch.zeros(1, 3, SIZE, SIZE), backend="fake", settings=FEW
    )
    found = whole_way(session, [images(8, 0), images(8, 1)])
    assert session.outputs == {f"output_{i}": "values" for i in range(3)}
    assert session.importance.notes["task"] == "auto"
    assert found["outputs"] == session.outputs and session.certificate.ok
    check_file(session, (images(3, 2),))
    report = read_json(session.folder / "export.json", "export")["models"]["model.onnx"]
    assert report["outputs"] == {f"output_{i}": [1, 12, 12 >> i, 12 >> i] for i in range(3)}


def test_two_inputs_go_the_whole_way() -> None:
    model = randomise(TwoInputs())
    numbers = torch.randn(16, 4, generator=torch.Generator().manual_seed(5))
    pairs = [(images(8, 0), numbers[:8]), (images(8, 1), numbers[8:])]
    example = (torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 4))
    session = tlm.Session(model, example, backend="fake", settings=FEW)
    found = whole_way(session, pairs, 1.05)
    assert session.outputs == {"label": "classes", "rest_0": "values"}
    assert session.input_names == ("image", "numbers")
    assert session.plan.changed and session.certificate.ok
    check_file(session, (images(3, 2), numbers[:3]))
    assert found["images"] == 16 and 0 < found["agreement"] <= 1
    # Labels go with them, also where the inputs come by name.
    labels = torch.arange(16) % 3
    named_batches = [
        {"numbers": n, "image": i, "label": y}
        for (i, n), y in zip(pairs, labels.split(8), strict=True)
    ]
    told, _ = session.verify(named_batches)
    with torch.no_grad():
        hits = [
            model(*p)["label"].argmax(1) == y for p, y in zip(pairs, labels.split(8), strict=True)
        ]
    assert told["accuracy"]["original"] == float(torch.cat(hits).double().mean())


def test_one_call_for_two_inputs_and_labels() -> None:
    model = randomise(TwoInputs())
    x, numbers = images(24), torch.randn(24, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = model(x, numbers)["label"].argmax(1)
    batches = [((x[i : i + 8], numbers[i : i + 8]), labels[i : i + 8]) for i in (0, 8, 16)]
    example = (torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 4))
    result = tlm.compress(
        model,
        batches,
        example,
        speedup=1.05,
        val_loader=batches,
        backend="fake",
        finetune={"epochs": 2, "batch": 8},
        settings=FEW,
    )
    with torch.no_grad():
        hits = result.model(x, numbers)["label"].argmax(1) == labels
    assert result.original_accuracy == 1.0
    assert result.accuracy == pytest.approx(float(hits.double().mean()))
    assert result.plan.changed and result.speedup is not None and result.speedup > 1.05


def test_two_inputs_are_repaired_trained_and_reconstructed() -> None:
    model = randomise(TwoInputs())
    data = [(images(16, 0), torch.randn(16, 4)), (images(16, 1), torch.randn(16, 4))]
    example = (torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 4))
    settings = {**FEW, "finetune": {"reconstruct": {"steps": 4, "batch": 8, "images": 32}}}
    session = tlm.Session(model, example, backend="fake", settings=settings)
    gone = next(c for c in session.candidates if c.kind == "fit")
    session.use(tlm.MergePlan.of(session.graph, [gone]))
    before = tlm.relax(model, session.graph, session.plan)
    network = session.relax()
    told = session.repair(Again(data))
    assert told is not None and told["error_after"] is not None

    def distance(net: nn.Module) -> float:
        with torch.no_grad():
            pairs = [(net(*x)["label"], model(*x)["label"]) for x in data]
        return float(torch.stack([(a - b).square().mean() for a, b in pairs]).mean())

    repaired = distance(network)
    assert repaired < 0.5 * distance(before)
    session.train(epochs=2, batch=16, lr=1e-3)
    assert session.merge() is not None and session.certificate.ok


def test_two_inputs_through_the_pieces() -> None:
    """Tuples, dicts, and both with labels are batches to repair on, and give the same repair."""
    model = randomise(TwoInputs())
    x, numbers, labels = images(32, 3), torch.randn(32, 4), torch.zeros(32, dtype=torch.long)
    graph = tlm.trace(model, (x[:1], numbers[:1]))
    plan = tlm.MergePlan.of(
        graph, [next(c for c in tlm.enumerate_candidates(graph) if c.kind == "fit")]
    )
    found = []
    for batch in (
        (x, numbers),
        (x, numbers, labels),
        {"numbers": numbers, "image": x},
        ((x, numbers), labels),
    ):
        relaxed = tlm.relax(model, graph, plan)
        tlm.repair(relaxed, model, [batch])
        assert tlm.certify(relaxed, tlm.collapse(relaxed), (x, numbers)).ok
        with torch.no_grad():
            found.append(relaxed(x, numbers)["label"])
    assert all(torch.equal(other, found[0]) for other in found[1:])
    with torch.no_grad():
        bare, wanted = (
            tlm.relax(model, graph, plan)(x, numbers)["label"],
            model(x, numbers)["label"],
        )
    assert (found[0] - wanted).square().mean() < 0.5 * (bare - wanted).square().mean()
    with pytest.raises(UsageError, match="takes 2 inputs"):
        tlm.repair(tlm.relax(model, graph, plan), model, [x])


def test_a_generator_of_several_inputs_is_refused() -> None:
    example = (torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 4))
    session = tlm.Session(randomise(TwoInputs()), example, backend="fake", settings=FEW)
    session.measure()
    with pytest.raises(UsageError, match="a generator gives them once"):
        session.score(batch for batch in [(images(8), torch.zeros(8, 4))])


def test_whole_numbers_may_be_an_input() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.table = Trunk(), nn.Embedding(10, 8)
            self.head = nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor, step: Tensor) -> Tensor:
            return self.head(self.trunk(x) + self.table(step)[:, :, None, None])

    model = randomise(Conditioned())
    example = (torch.zeros(1, 3, SIZE, SIZE), torch.tensor([7]))
    graph = tlm.trace(model, example)
    assert graph.input_types == ("float32", "int64")
    session = tlm.Session(model, example, backend="fake", settings=FEW)
    data = [(images(16), torch.arange(16) % 10)]
    assert whole_way(session, data, 1.05)["outputs"] == {"logits": "values"}
    assert session.certificate.ok
    check_file(session, (images(3, 2), torch.tensor([0, 5, 9])))


def test_a_diffusion_model_goes_the_whole_way_on_onnx_runtime() -> None:
    torch.manual_seed(0)
    example = Path(__file__).parents[2] / "examples" / "ddpm" / "unet.py"
    model = runpy.run_path(str(example))["UNet"](1, (8,), (), 1, 4).eval()
    settings = {**FEW, "search": {**FEW["search"], "rules": "paper", "race_steps": 0}}
    inputs = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    session = tlm.Session(model, inputs, settings=settings)
    steps = torch.arange(0, 1000, 64)
    batches = [(torch.randn(16, 1, 8, 8), steps)]
    session.measure()
    table = session.score(batches)
    bridged = [c for c in session.candidates if len(c.block) == 2 and c in table]
    assert bridged and all(table[c].delta < 0 for c in bridged)
    one = next(c for c in bridged if len(c.kept) == 1)
    session.use(tlm.MergePlan.of(session.graph, [one]))
    network = session.relax()
    session.repair(batches)
    optimiser = torch.optim.SGD(network.train().parameters(), 0.1)
    F.mse_loss(network(*batches[0]), batches[0][0]).backward()
    optimiser.step()
    merged = session.merge()
    session.export()
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([500])
    run = onnxruntime.InferenceSession(session.folder / "model.onnx")
    names = [value.name for value in run.get_inputs()]
    (found,) = run.run(None, dict(zip(names, (x.numpy(), t.numpy()), strict=True)))
    with torch.no_grad():
        np.testing.assert_allclose(found, merged(x, t).numpy(), atol=1e-4)
        np.testing.assert_allclose(found, network.eval()(x, t).numpy(), atol=1e-4)
    assert not np.allclose(found, model(x, t).detach().numpy(), atol=1e-2)


def test_an_image_to_an_image_is_judged_by_its_error() -> None:
    """What argmax over three colours would call mostly the same is told to be lost."""
    model = randomise(Restorer())
    session = tlm.Session(model, torch.zeros(1, 3, SIZE, SIZE), backend="fake", settings=FEW)
    assert session.outputs == {"logits": "values"}
    plan = tlm.MergePlan.of(
        session.graph, [c for c in session.candidates if c.kind == "identity"][:1]
    )
    session.use(plan)
    session.relax()
    session.merge(images(4))
    session.export(check=images(4))
    found, _ = session.verify([images(8)])
    with torch.no_grad():
        a, b = model(images(8)).double(), session.merged(images(8)).double()
    scale = a.square().mean().sqrt()
    near = ((a - b).abs() <= 0.1 * scale) & (((a - b).abs() <= 1e-3 * scale) | ((a > 0) == (b > 0)))
    assert found["agreement"] == pytest.approx(float(near.double().mean()), abs=1e-6)
    assert found["agreement"] < float((a.argmax(1) == b.argmax(1)).double().mean())


def test_several_numbers_may_be_declared_to_be_none_of_classes() -> None:
    model = randomise(
        nn.Sequential(Trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    )
    example = torch.zeros(1, 3, SIZE, SIZE)
    assert tlm.Session(model, example, backend="fake").outputs == {"logits": "classes"}
    for task in ("regression", {"logits": "regression"}):
        session = tlm.Session(model, example, backend="fake", settings={**FEW, "task": task})
        assert session.outputs == {"logits": "values"}
    session.measure()
    table = session.score([(images(16), torch.zeros(16, dtype=torch.long))])
    assert table.notes["task"] == {"logits": "regression"}
    with pytest.raises(UsageError, match=r"task names sise, and the network's outputs are logits"):
        tlm.Session(
            model, example, backend="fake", settings={"task": {"sise": "regression"}}
        ).measure()
    with pytest.raises(UsageError, match="task"):
        tlm.Session(model, example, settings={"task": "guessing"})


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([images(8)], r"takes 2 inputs .image, numbers., and a batch is a Tensor"),
        ([(images(8), torch.zeros(7, 4))], "tensors of as many rows"),
        ([{"image": images(8)}], "dicts of them by these names"),
    ],
)
def test_batches_that_lack_an_input_are_refused(batches: list[Any], words: str) -> None:
    example = (torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 4))
    session = tlm.Session(randomise(TwoInputs()), example, backend="fake", settings=FEW)
    session.measure()
    with pytest.raises(UsageError, match=words):
        session.score(batches)


def test_outputs_that_do_not_follow_the_images_are_refused_at_once() -> None:
    class Anchored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = Trunk()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.trunk(x), torch.zeros(7, 4)

    session = tlm.Session(Anchored(), torch.zeros(1, 3, SIZE, SIZE), backend="fake")
    with pytest.raises(UnsupportedModelError, match=r"output_1 has the shape .7, 4. for 1 images"):
        session.inspect()
    with pytest.raises(UsageError, match="of every other input, N rows"):
        tlm.Session(TwoInputs(), (torch.zeros(2, 3, SIZE, SIZE), torch.zeros(1, 4)))


def merged_without_one(model: nn.Module, x: Tensor) -> tlm.Session:
    """Returns a session whose merged network lacks the first thing that may be left out."""
    session = tlm.Session(model, x[:1], backend="fake", settings=FEW)
    gone = [c for c in session.candidates if c.kind == "identity"]
    session.use(tlm.MergePlan.of(session.graph, gone[:1]))
    session.relax()
    session.repair([x, x])
    session.merge(x)
    return session


@pytest.mark.parametrize(
    "name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]
)
def test_segmentation_networks_of_torchvision_keep_their_outputs(name: str) -> None:
    options: dict[str, Any] = {} if name.startswith("lraspp") else {"aux_loss": True}
    torch.manual_seed(0)
    build = getattr(segmentation, name)
    model = build(weights=None, weights_backbone=None, num_classes=5, **options).eval()
    x = torch.randn(2, 3, 64, 64)
    session = merged_without_one(model, x)
    assert session.outputs == dict.fromkeys(model(x), "classes")
    assert "out" in session.outputs and session.certificate.ok
    if name.startswith("fcn"):  # exporting 140 MB twice takes most of a minute
        return
    session.export(check=x)
    found, _ = session.verify([x])
    assert found["failed_gate"] is None
    check_file(session, (x,))


def test_features_of_timm_keep_their_places() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", features_only=True).eval()
    x = torch.randn(2, 3, 64, 64)
    session = merged_without_one(model, x)
    session.export(check=x)
    session.verify([x])
    assert session.outputs == {f"output_{i}": "values" for i in range(5)}
    check_file(session, (x,))
