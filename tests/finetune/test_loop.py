"""Training: resumes bit for bit, keeps what the recipe says, refuses what is not its own."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.data.helpers import PREPROCESS
from trt_layermerge.data import Framing, LabelledData, Part, open_data
from trt_layermerge.data.sources import ArrayData
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    LayerMergeError,
    UnsupportedModelError,
    UsageError,
)
from trt_layermerge.finetune.evaluate import accuracy, outputs_for
from trt_layermerge.finetune.loop import EpochRow, finetune
from trt_layermerge.finetune.norms import batch_norms, reestimate
from trt_layermerge.finetune.recipe import FinetuneRecipe
from trt_layermerge.finetune.state import load_state

MakeData = Callable[..., LabelledData]
MakeNet = Callable[..., nn.Module]

PLAIN = FinetuneRecipe(epochs=4, batch=10, lr=0.02, distill_weight=0.0)
RICH = replace(
    PLAIN,
    distill_weight=0.5,
    ema_decay=0.9,
    grad_clip=1.0,
    label_smoothing=0.1,
    augment=("shift:1", "noise:0.1"),
)
SGD = replace(RICH, optimiser="sgd", ema_decay=None, bn="reestimate", lr=0.1)


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class Stop(KeyboardInterrupt):
    """Stands for Ctrl-C."""


def stop_after(epoch: int) -> Callable[[EpochRow], None]:
    def check(row: EpochRow) -> None:
        if row.epoch == epoch:
            raise Stop

    return check


def test_training_learns(make_data: MakeData, make_net: MakeNet) -> None:
    train, val, net = make_data(120, 1), make_data(60, 2), make_net()
    before = accuracy(net, val)
    recipe = replace(PLAIN, epochs=12)
    result = finetune(net, train, val, recipe)
    assert before < 0.6 < 0.9 < accuracy(net, val)
    assert result.val_accuracy == result.history[-1].val_accuracy == accuracy(net, val)
    assert [r.epoch for r in result.history] == list(range(1, 13))
    assert result.history[-1].loss < result.history[0].loss
    assert result.resumed_epochs == 0
    assert set(result.history[0].to_json()) == {"epoch", "loss", "val_accuracy", "seconds"}


@pytest.mark.parametrize("recipe", [PLAIN, RICH, SGD], ids=["plain", "rich", "sgd"])
def test_interrupted_and_resumed_equals_uninterrupted(
    recipe: FinetuneRecipe, make_data: MakeData, make_net: MakeNet, tmp_path: Path
) -> None:
    train, val, teacher = make_data(44, 1), make_data(30, 2), make_net(9)
    whole, state = make_net(), tmp_path / "state.safetensors"
    expected = finetune(whole, train, val, recipe, teacher=teacher)
    for epoch in (1, 3):
        torch.manual_seed(epoch)  # the caller's own randomness must not matter
        with pytest.raises(Stop):
            finetune(
                make_net(),
                train,
                val,
                recipe,
                teacher=teacher,
                state_path=state,
                on_epoch=stop_after(epoch),
            )
    resumed = make_net()
    result = finetune(resumed, train, val, recipe, teacher=teacher, state_path=state)
    assert result.resumed_epochs == 3
    assert_same(values(whole), values(resumed))
    assert [(r.loss, r.val_accuracy) for r in result.history] == [
        (r.loss, r.val_accuracy) for r in expected.history
    ]
    assert result.val_accuracy == expected.val_accuracy
    finished = make_net()
    again = finetune(finished, train, val, recipe, teacher=teacher, state_path=state)
    assert again.resumed_epochs == 4
    assert again.val_accuracy == expected.val_accuracy
    assert_same(values(whole), values(finished))


@pytest.mark.parametrize("recipe", [PLAIN, RICH, SGD], ids=["plain", "rich", "sgd"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_that_stops_early_is_the_beginning_of_the_whole_one(
    recipe: FinetuneRecipe, epochs: int, make_data: MakeData, make_net: MakeNet, tmp_path: Path
) -> None:
    train, val, teacher = make_data(44, 1), make_data(30, 2), make_net(9)
    whole, state = make_net(), tmp_path / "state.safetensors"
    expected = finetune(whole, train, val, recipe, teacher=teacher)
    begun = make_net()
    result = finetune(
        begun, train, val, recipe, teacher=teacher, state_path=state, stop_after=epochs
    )
    assert [(r.epoch, r.loss, r.val_accuracy) for r in result.history] == [
        (r.epoch, r.loss, r.val_accuracy) for r in expected.history[:epochs]
    ]
    assert result.val_accuracy == accuracy(begun, val)
    resumed = make_net()
    rest = finetune(resumed, train, val, recipe, teacher=teacher, state_path=state)
    assert rest.resumed_epochs == epochs
    assert_same(values(whole), values(resumed))


def test_stopping_early_leaves_the_weights_of_that_epoch(
    make_data: MakeData, make_net: MakeNet
) -> None:
    """The rate goes on as in the whole training: it is not lowered to 0 within what is done."""
    whole, begun, shorter, seen = make_net(), make_net(), make_net(), []
    train = make_data(44, 1)
    finetune(whole, train, None, PLAIN, on_epoch=lambda _: seen.append(values(whole)))
    finetune(begun, train, None, PLAIN, stop_after=2)
    assert_same(seen[1], values(begun))
    finetune(shorter, train, None, replace(PLAIN, epochs=2))
    assert not torch.equal(seen[1]["0.weight"], values(shorter)["0.weight"])
    for beyond in (4, 9):
        again = make_net()
        assert len(finetune(again, train, None, PLAIN, stop_after=beyond).history) == 4
        assert_same(values(whole), values(again))


def test_an_interruption_within_an_epoch_keeps_the_last_state(
    make_data: MakeData, make_net: MakeNet, tmp_path: Path
) -> None:
    train, state = make_data(40, 1), tmp_path / "s"

    class Failing(Part):
        calls = 0

        def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            Failing.calls += 1
            if Failing.calls == 7:
                raise Stop
            return super().batch(indices)

    with pytest.raises(Stop):
        finetune(make_net(), Failing(train, torch.arange(40)), None, PLAIN, state_path=state)
    net, whole = make_net(), make_net()
    assert finetune(net, train, None, PLAIN, state_path=state).resumed_epochs == 1
    finetune(whole, train, None, PLAIN)
    assert_same(values(net), values(whole))


def test_the_seed_decides_and_the_callers_randomness_is_left_alone(
    make_data: MakeData, make_net: MakeNet
) -> None:
    results = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        net = make_net()
        finetune(net, make_data(), None, replace(PLAIN, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        results.append(values(net))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0]["0.weight"], results[2]["0.weight"])


@pytest.mark.parametrize("change", ["recipe", "start", "images", "teacher", "identity"])
def test_the_state_of_another_training_is_set_aside(
    change: str, make_data: MakeData, make_net: MakeNet, tmp_path: Path
) -> None:
    state = tmp_path / "s"
    finetune(make_net(), make_data(40), None, replace(PLAIN, epochs=1), state_path=state)
    kept = state.read_bytes()
    arguments: dict[str, Any] = {"student": make_net(), "train": make_data(40)}
    recipe = replace(PLAIN, epochs=1)
    if change == "recipe":
        recipe = replace(recipe, lr=0.5)
    elif change == "start":
        arguments["student"] = make_net(1)
    elif change == "images":
        arguments["train"] = make_data(30)
    elif change == "identity":
        arguments |= {"train": make_data(40, seed=1), "identity": "other images"}
    else:
        arguments["teacher"] = make_net(1)
    result = finetune(**arguments, val=None, recipe=recipe, state_path=state)
    assert result.resumed_epochs == 0
    assert state.read_bytes() != kept
    aside = [p for p in tmp_path.glob("s.*")]
    assert [p.read_bytes() for p in aside] == [kept]


def test_damaged_states_end_in_our_errors(
    make_data: MakeData, make_net: MakeNet, tmp_path: Path
) -> None:
    state, train = tmp_path / "s", make_data(20)
    recipe = replace(PLAIN, epochs=1)
    finetune(make_net(), train, None, recipe, state_path=state)
    good, rng = state.read_bytes(), random.Random(0)
    size = 8 + int.from_bytes(good[:8], "little")
    for n in range(0, len(good), 97):
        state.write_bytes(good[:n])
        with pytest.raises(CorruptInputError, match="damaged"):
            finetune(make_net(), train, None, recipe, state_path=state)
    for _ in range(150):
        mutated = bytearray(good)
        mutated[rng.randrange(size)] = rng.randrange(256)
        state.write_bytes(bytes(mutated))
        try:
            finetune(make_net(), train, None, recipe, state_path=state)
        except LayerMergeError:
            continue
    for place in range(size, len(good), max(1, (len(good) - size) // 40)):
        state.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(CorruptInputError, match=r"not as they were written.*delete the file"):
            finetune(make_net(), train, None, recipe, state_path=state)


def test_a_lack_of_memory_does_not_call_a_state_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who deletes it, as is said of damaged ones, loses days."""

    def opened(*_: object, **__: object) -> None:
        raise MemoryError("Cannot allocate memory")

    (tmp_path / "s").write_bytes(b"days of training")
    monkeypatch.setattr("trt_layermerge.finetune.state.safe_open", opened)
    with pytest.raises(DeviceError, match="larger than the memory; close other programs"):
        load_state(tmp_path / "s", "run")


def test_unwritable_state_is_a_device_error(
    make_data: MakeData, make_net: MakeNet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DeviceError, match="file"):
        finetune(make_net(), make_data(20), None, PLAIN, state_path=tmp_path / "file" / "s")


def test_distillation_needs_a_teacher(make_data: MakeData, make_net: MakeNet) -> None:
    with pytest.raises(UsageError, match="no teacher"):
        finetune(make_net(), make_data(20), None, RICH)


def test_the_teacher_is_used_and_left_untouched(make_data: MakeData, make_net: MakeNet) -> None:
    teacher = make_net(9).train()
    before, train = values(teacher), make_data(200, 3)
    recipe = replace(PLAIN, distill_weight=1.0, epochs=30)
    net = make_net(1)
    finetune(net, train, None, recipe, teacher=teacher)
    assert_same(before, values(teacher))
    assert teacher.training and teacher[1].training  # type: ignore[index]
    images = train.batch(torch.arange(200))[0]
    with torch.no_grad():
        mine, theirs = net(images), teacher.eval()(images)
    start = make_net(1).eval()(images).detach()
    assert F.mse_loss(mine.softmax(1), theirs.softmax(1)) < 0.2 * F.mse_loss(
        start.softmax(1), theirs.softmax(1)
    )


def test_one_sgd_step_by_hand(make_data: MakeData) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            nn.init.constant_(self.layer.weight, 0.1)
            nn.init.constant_(self.layer.bias, 0.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.mean((2, 3)))

    recipe = FinetuneRecipe(
        epochs=1,
        batch=12,
        optimiser="sgd",
        lr=0.5,
        warmup_epochs=0,
        weight_decay=0.1,
        label_smoothing=0.2,
        distill_weight=0.25,
        temperature=2.0,
    )
    net, teacher, train = Linear(), Linear(), make_data(12)
    nn.init.eye_(teacher.layer.weight)
    expected = copy.deepcopy(net)
    images, labels = train.batch(torch.arange(12))
    logits, soft = expected(images), teacher(images).detach()
    target = F.one_hot(labels, 3) * 0.8 + 0.2 / 3
    hard = -(target * logits.log_softmax(1)).sum(1).mean()
    p, q = (soft / 2).softmax(1), (logits / 2).softmax(1)
    loss = 0.75 * hard + 0.25 * 4 * (p * (p / q).log()).sum(1).mean()
    loss.backward()
    # First Nesterov step: velocity = gradient, moved by gradient + 0.9 · velocity.
    layer = expected.layer
    decayed = layer.weight.grad + 0.1 * layer.weight
    result = finetune(net, train, None, recipe, teacher=teacher)
    assert result.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(
        net.layer.weight, layer.weight - 0.5 * 1.9 * decayed, rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        net.layer.bias, layer.bias - 0.5 * 1.9 * layer.bias.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("all_decay", [False, True])
def test_weight_decay_spares_normalisations_and_biases(
    make_data: MakeData, make_net: MakeNet, optimiser: Any, all_decay: bool
) -> None:
    class Deaf(nn.Module):
        """Gives logits that depend on no parameter, so that decay alone moves them."""

        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()
            nn.init.constant_(self.net[6].bias, 0.5)
            nn.init.constant_(self.net[1].bias, 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) + 0 * self.net(x)

    net, decay = Deaf(), 0.1
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    recipe = replace(
        PLAIN, epochs=1, batch=40, optimiser=optimiser, lr=0.5, weight_decay=decay, momentum=0.0,
        nesterov=False, warmup_epochs=0, decay_bn_bias=all_decay,
    )  # fmt: skip
    finetune(net, make_data(40), None, recipe)
    shrunk = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    weights, flat = {"net.0.weight", "net.6.weight"}, {"net.1.weight", "net.1.bias", "net.6.bias"}
    assert shrunk == (weights | flat if all_decay else weights)
    for name in shrunk:
        moved = dict(net.named_parameters())[name]
        torch.testing.assert_close(moved, before[name] * (1 - 0.5 * decay), rtol=1e-5, atol=1e-7)


def loader_of(data: LabelledData, batch: int = 10, *, labels: bool = True) -> DataLoader[Any]:
    images, numbers = data.batch(torch.arange(len(data)))
    dataset = TensorDataset(images, numbers) if labels else TensorDataset(images)
    return DataLoader(dataset, batch, shuffle=True)


def test_a_loader_of_ones_own_trains_judges_and_resumes(
    make_data: MakeData, make_net: MakeNet, tmp_path: Path
) -> None:
    train, val = loader_of(make_data(125, 1)), loader_of(make_data(60, 2))
    recipe = replace(PLAIN, epochs=12)
    before, net = torch.get_rng_state(), make_net()
    result = finetune(net, train, val, recipe)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.val_accuracy == accuracy(net, make_data(60, 2)) == accuracy(net, val) > 0.9
    resumed, state = make_net(), tmp_path / "s"
    with pytest.raises(Stop):
        finetune(make_net(), train, val, recipe, state_path=state, on_epoch=stop_after(5))
    rest = finetune(resumed, train, val, recipe, state_path=state)
    assert rest.resumed_epochs == 5
    assert_same(values(net), values(resumed))


def test_what_a_loader_gives_is_not_changed_and_counts_whole(
    make_data: MakeData, make_net: MakeNet
) -> None:
    """Batches of another size and augmentation in the recipe play no part."""
    images, labels = make_data(25).batch(torch.arange(25))
    seen: list[torch.Tensor] = []
    net = make_net()
    net[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    given = [(images[:20], labels[:20]), [images[20:], labels[20:], "names"]]
    recipe = replace(PLAIN, epochs=2, batch=7, augment=("shift:2",))
    told: list[float] = []
    result = finetune(net, given, None, recipe, schedule=told.append)
    assert told == [0, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0]
    assert [len(x) for x in seen] == [20, 5] * 2 and torch.equal(torch.cat(seen[:2]), images)
    assert [row.val_accuracy for row in result.history] == [None, None]


def test_images_alone_are_for_a_teacher(make_data: MakeData, make_net: MakeNet) -> None:
    loader = loader_of(make_data(40), labels=False)
    with pytest.raises(UsageError, match="the loader gives no labels"):
        finetune(make_net(), loader, None, replace(PLAIN, epochs=1))
    recipe = replace(PLAIN, epochs=20, distill_weight=1.0)
    student, teacher = make_net(1), make_net(9)
    result = finetune(student, loader, loader, recipe, teacher=teacher)
    assert result.history[-1].loss < 0.3 * result.history[0].loss
    assert result.val_accuracy is None
    bare = [x for (x,) in loader]
    assert finetune(make_net(), bare, None, recipe, teacher=teacher).history[-1].loss < 1


def test_a_metric_is_reported_in_the_place_of_the_accuracy(
    make_data: MakeData, make_net: MakeNet
) -> None:
    judged: list[bool] = []

    def metric(network: nn.Module) -> float:
        judged.append(network.training or torch.is_grad_enabled())
        return 40.0 + len(judged)

    for val in (None, make_data(20)):
        judged.clear()
        result = finetune(make_net(), make_data(40), val, replace(PLAIN, epochs=2), metric=metric)
        assert [row.val_accuracy for row in result.history] == [41.0, 42.0]
        assert result.val_accuracy == 42.0 and judged == [False, False]


def test_folders_are_loaded_by_processes_while_training(make_net: MakeNet, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(36):
        (tmp_path / "d" / "rgb"[i % 3]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (12, 16, 3), dtype=np.uint8)
        pixels[..., i % 3] += 100
        Image.fromarray(pixels).save(tmp_path / "d" / "rgb"[i % 3] / f"{i:02}.jpg")
    data = open_data(f"imagefolder:{tmp_path / 'd'}", PREPROCESS, framing=Framing((8, 8)))
    recipe = replace(PLAIN, epochs=10, batch=6, augment=("crop:0.3", "flip", "jitter:0.2"))
    nets = [make_net(), make_net(), make_net()]
    results = [
        finetune(net, data, data, recipe, workers=workers)
        for net, workers in zip(nets, (0, 2, None), strict=True)
    ]
    assert_same(values(nets[0]), values(nets[1]))
    assert_same(values(nets[0]), values(nets[2]))
    assert results[0].val_accuracy == results[1].val_accuracy
    assert results[0].val_accuracy is not None and results[0].val_accuracy > 0.9


def test_the_running_mean_is_kept_and_judged(make_data: MakeData, make_net: MakeNet) -> None:
    train, val = make_data(40, 1), make_data(30, 2)
    net, trace = make_net(), []
    recipe = replace(PLAIN, epochs=2, batch=40, ema_decay=0.75)

    def record(row: EpochRow) -> None:
        trace.append(net[6].weight.detach().clone())  # type: ignore[index]

    start = net[6].weight.detach().clone()  # type: ignore[index]
    result = finetune(net, train, val, recipe, on_epoch=record)
    mean = 0.75 * (0.75 * start + 0.25 * trace[0]) + 0.25 * trace[1]
    torch.testing.assert_close(net[6].weight.detach(), mean, rtol=1e-5, atol=1e-7)  # type: ignore[index]
    assert result.val_accuracy == accuracy(net, val)


def test_frozen_statistics_stay(make_data: MakeData, make_net: MakeNet) -> None:
    net = make_net()
    before = values(net)
    finetune(net, make_data(), None, replace(PLAIN, bn="freeze"))
    assert torch.equal(net[1].running_mean, before["1.running_mean"])  # type: ignore[index]
    assert not torch.equal(net[1].weight, before["1.weight"])  # type: ignore[index]


def test_reestimated_statistics_are_the_plain_mean(make_data: MakeData, make_net: MakeNet) -> None:
    net, data = make_net(), make_data(40)
    images = data.batch(torch.arange(40))[0]
    with torch.no_grad():
        maps = net[0](images)  # type: ignore[index]
    reestimate(net, images.split(20))
    norm = batch_norms(net)[0]
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    halves = torch.stack([m.var((0, 2, 3)) for m in maps.split(20)]).mean(0)
    torch.testing.assert_close(norm.running_var, halves, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1 and not norm.training


def pooled() -> nn.Module:
    """Returns a network that normalises maps, and then what is left of them: one pixel."""
    torch.manual_seed(0)
    maps = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    pixel = (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(*maps, *pixel)


@pytest.mark.parametrize("mode", ["train", "reestimate"])
def test_a_batch_of_one_image_has_no_variance_where_its_map_is_a_pixel(
    make_data: MakeData, mode: Any
) -> None:
    """There the running statistics are used, and stay; elsewhere those of the batch."""
    net, data = pooled(), make_data(6)
    before = values(net)
    finetune(net, data, None, replace(PLAIN, batch=1, epochs=1, bn=mode))
    after = values(net)
    assert not torch.equal(after["5.weight"], before["5.weight"])
    assert torch.equal(after["5.running_var"], before["5.running_var"])
    assert not torch.equal(after["1.running_var"], before["1.running_var"])


def test_of_batches_those_of_one_image_are_left_out_where_maps_are_pixels(
    make_data: MakeData,
) -> None:
    net, images = pooled().eval(), make_data(9).batch(torch.arange(9))[0]
    maps = nn.Sequential(*list(copy.deepcopy(net))[:5])  # type: ignore[call-overload]
    maps[1].train()
    reestimate(net, images.split(4))  # the last one is one image
    with torch.no_grad():
        spread = [maps(part).var((0, 2, 3)) for part in images[:8].split(4)]
    torch.testing.assert_close(net[5].running_var, torch.stack(spread).mean(0))  # type: ignore[index]
    assert net[5].num_batches_tracked == 2 and not net[5].training  # type: ignore[index]


def test_diverging_and_damaged_starts_are_told_apart(
    make_data: MakeData, make_net: MakeNet
) -> None:
    with pytest.raises(UsageError, match="lower lr"):
        finetune(make_net(), make_data(), None, replace(PLAIN, optimiser="sgd", lr=1e30))
    net = make_net()
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(CorruptInputError, match="first loss"):
        finetune(net, make_data(), None, PLAIN)


def test_fewer_images_than_a_batch(make_data: MakeData, make_net: MakeNet) -> None:
    result = finetune(make_net(), make_data(5), None, replace(PLAIN, batch=64, epochs=2))
    assert len(result.history) == 2


def test_a_cpu_trains_channels_last_and_leaves_no_trace_of_it(
    make_data: MakeData, make_net: MakeNet
) -> None:
    student, seen = make_net(), []
    conv = next(m for m in student.modules() if isinstance(m, nn.Conv2d))
    conv.register_forward_hook(lambda m, inputs, out: seen.append((inputs[0], out)))
    finetune(student, make_data(20), None, replace(PLAIN, epochs=1))
    assert seen and all(
        t.is_contiguous(memory_format=torch.channels_last) for pair in seen for t in pair
    )
    assert all(p.is_contiguous() for p in student.parameters())


def test_predictions_by_hand() -> None:
    pixels = torch.zeros(5, 3, 2, 2, dtype=torch.uint8)
    expected = [2, 0, 1, 1, 2]
    for i, label in enumerate(expected):
        pixels[i, label] = 255
    data = ArrayData(pixels, torch.tensor([2, 0, 1, 0, 0]), ("a", "b", "c"), PREPROCESS)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    assert outputs_for(net, data.batch(torch.arange(5))[0])["logits"].argmax(1).tolist() == expected
    assert accuracy(net, data) == 0.6
    assert net.training and net[0].training


def test_what_is_no_classifier_is_refused(make_data: MakeData, make_net: MakeNet) -> None:
    with pytest.raises(UnsupportedModelError, match=r"\(30, 3, 8, 8\)"):
        accuracy(nn.Identity(), make_data(30))
    net = make_net()
    nn.init.constant_(net[6].bias, torch.nan)  # type: ignore[index]
    with pytest.raises(CorruptInputError, match="NaN"):
        accuracy(net, make_data(30))


def test_labels_beyond_the_classes_are_refused(make_data: MakeData, make_net: MakeNet) -> None:
    data = make_data(40)
    assert isinstance(data, ArrayData)
    shifted = replace(data, labels=data.labels + 1)
    for work in (
        lambda: accuracy(make_net(), shifted),
        lambda: finetune(make_net(), shifted, None, PLAIN),
    ):
        with pytest.raises(CorruptInputError, match="label 3, but the network tells 3 classes"):
            work()
