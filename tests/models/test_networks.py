"""Networks by name, and weights that do not do what weights should."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trt_layermerge.errors import (
    CorruptInputError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
)
from trt_layermerge.models.networks import load_network, network_inputs, weight_note
from trt_layermerge.models.weights import fill, read_weights, untrained_note

SHAPE = (1, 3, 224, 224)

NETS = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

def number():
    return 3

def broken():
    raise RuntimeError("out of order")

text = "not callable"
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return str(tmp_path / "nets.py")


def small() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def load(nets: str, weights: Path | None = None) -> nn.Module:
    return load_network(f"{nets}:small", None if weights is None else str(weights))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.module."])
def test_checkpoints_and_safetensors_fill_the_network(
    nets: str, tmp_path: Path, wrap: str | None, prefix: str
) -> None:
    state = small().state_dict()
    prefixed = {f"{prefix}{k}": v for k, v in state.items()}
    save_file(prefixed, tmp_path / "w.safetensors")
    body = {wrap: prefixed, "epoch": 3, "optimizer": {"lr": 0.1}} if wrap else prefixed
    torch.save({"state": 1, "model": body} if wrap == "state_dict" else body, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        loaded = load(nets, tmp_path / name)
        assert not loaded.training
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, state[key])


def test_a_compiled_part_and_a_part_that_is_called_module(tmp_path: Path) -> None:
    """Prefixes are taken off where wrappers put them, and match names that have them by right."""
    inner = nn.ModuleDict({"module": small(), "head": nn.Linear(4, 2)})
    state = inner.state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    renamed = {k.replace("0.", "0._orig_mod."): v for k, v in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, tmp_path / "compiled.safetensors")
    for name in ("plain", "compiled"):
        other = nn.ModuleDict({"module": small(), "head": nn.Linear(4, 2)})
        nn.init.zeros_(other["module"][0].weight)
        fill(other, tmp_path / f"{name}.safetensors")
        assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
    ambiguous = {"a.w": torch.zeros(1), "module.a.w": torch.ones(1)}
    save_file(ambiguous, tmp_path / "two.safetensors")
    assert read_weights(tmp_path / "two.safetensors").keys() == ambiguous.keys()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"state_dict": {}},
        {"epoch": 3},
        {"weight": torch.ones(1), "lr": 0.1},
        [torch.ones(1)],
        {"model": "resnet18"},
    ],
)
def test_what_holds_no_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CorruptInputError, match=r"no mapping of names to tensors"):
        read_weights(tmp_path / "w.pt")


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CorruptInputError, match="it holds model"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_are_taken(nets: str, tmp_path: Path, dtype: torch.dtype) -> None:
    state = small().state_dict()
    floats = {k: v.to(dtype) if v.is_floating_point() else v.int() for k, v in state.items()}
    save_file(floats, tmp_path / "w.safetensors")
    for key, value in load(nets, tmp_path / "w.safetensors").state_dict().items():
        assert value.dtype == state[key].dtype
        assert torch.equal(value, state[key].to(dtype).to(value.dtype))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.complex64, torch.float8_e4m3fn]
)
def test_weights_that_are_no_floats_are_named(
    nets: str, tmp_path: Path, dtype: torch.dtype
) -> None:
    state = small().state_dict()
    state["0.weight"] = state["0.weight"].to(dtype)
    torch.save(state, tmp_path / "w.pt")
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CorruptInputError, match=f"0.weight is {kind} and cannot become float32"):
        load(nets, tmp_path / "w.pt")


def test_a_counter_that_is_a_float_is_named(nets: str, tmp_path: Path) -> None:
    state = small().state_dict()
    state["1.num_batches_tracked"] = torch.tensor(3.5)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CorruptInputError, match=r"1\.num_batches_tracked is float32"):
        load(nets, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("timm:resnet18", None, True),
        ("torchvision:resnet18", None, True),
        ("torchvision:resnet18", "pretrained", False),
        ("timm:resnet18", "w.safetensors", False),
        ("net.py:build", None, False),
        ("net.onnx", None, False),
    ],
)
def test_random_weights_are_told(name: str, weights: str | None, said: bool) -> None:
    note = weight_note(name, weights)
    assert (note is not None) == said
    assert note is None or (name in note and "random" in note and "--weights pretrained" in note)


def test_a_network_that_was_never_trained_is_known_by_its_norms() -> None:
    fresh = nn.Sequential(small(), nn.SyncBatchNorm(4), nn.BatchNorm2d(4, affine=False))
    note = untrained_note(fresh)
    assert note is not None and "random weights: its 3 batch normalisations" in note
    fresh.train()[0](torch.randn(2, 3, 8, 8))  # one step of any training moves them
    assert untrained_note(fresh) is None
    silent = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert untrained_note(silent) is None


def test_random_weights_are_the_same_whenever_a_run_continues(nets: str) -> None:
    torch.manual_seed(1)
    first, drawn = load(nets), torch.rand(1)
    second = load(nets)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors", "w"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_execute_code_is_refused(
    nets: str, tmp_path: Path, name: str, zipped: bool
) -> None:
    canary, path = tmp_path / "canary", tmp_path / name
    if zipped:
        torch.save({"weight": Payload(canary)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Payload(canary)}))
    with pytest.raises(CorruptInputError) as caught:
        load(nets, path)
    assert not canary.exists()
    if not name.endswith(".safetensors"):
        assert isinstance(caught.value, UntrustedInputError)


def test_damaged_weights_are_refused(nets: str, tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "w.safetensors")
    torch.save(small().state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        data = (tmp_path / name).read_bytes()
        for size in (0, 1, 9, len(data) // 2, len(data) - 1):
            (tmp_path / name).write_bytes(data[:size])
            with pytest.raises(CorruptInputError, match=r"damaged|do not fit"):
                load(nets, tmp_path / name)


def test_weights_of_another_network_are_named(nets: str, tmp_path: Path) -> None:
    state = small().state_dict()
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    state["extra"] = torch.zeros(1)
    del state["1.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CorruptInputError) as caught:
        load(nets, tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "0.weight is (4, 3, 5, 5), not (4, 3, 3, 3)" in text
    assert "1.bias (4,) is missing from the file" in text
    assert "extra (1,) is not in the network" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(nets: str, tmp_path: Path, value: float) -> None:
    state = small().state_dict()
    state["1.running_var"][2] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CorruptInputError, match=r"1\.running_var has values that are not finite"):
        load(nets, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet18", UsageError, "names no network"),
        ("nowhere.py:small", UsageError, "there is no file"),
        ("no.such.package:net", UsageError, "cannot import"),
        ("torch.nn:NoSuchNet", UsageError, "no factory"),
        ("model.onnx", UsageError, "there is no ONNX file"),
        ("NETS:text", UsageError, "no function"),
        ("NETS:missing", UsageError, "no function"),
        ("NETS:number", UnsupportedModelError, "returned a int"),
        ("NETS:broken", UsageError, "RuntimeError: out of order"),
        ("torchvision:resnet19", UsageError, "did you mean .*resnet18"),
        ("timm:resnet19", UsageError, "did you mean .*resnet18"),
    ],
)
def test_names_that_are_no_network(
    nets: str, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_network(name.replace("NETS", nets))


def test_missing_weights_are_named(nets: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.safetensors"):
        load(nets, tmp_path / "none.safetensors")


def test_a_changed_file_is_another_network(nets: str, tmp_path: Path) -> None:
    before = network_inputs(f"{nets}:small", None, SHAPE)
    Path(nets).write_text(NETS.replace("4", "5"))
    assert network_inputs(f"{nets}:small", None, SHAPE) != before


def test_tensors_are_read_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["a"], torch.ones(2))


def test_a_checkpoint_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    """A tensor of one value, shown four billion times."""
    torch.save({"w": torch.zeros(1).expand(4_000_000_000)}, tmp_path / "w.pt")
    with pytest.raises(CorruptInputError, match="says that it holds 16,000,000,000, of which"):
        read_weights(tmp_path / "w.pt")
    torch.save({"w": torch.zeros(1).expand(1000)}, tmp_path / "small.pt")
    assert read_weights(tmp_path / "small.pt")["w"].shape == (1000,)


def test_a_checkpoint_that_was_packed_to_nothing_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(30_000_000)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CorruptInputError, match="says that it holds 120,000,"):
        read_weights(tmp_path / "packed.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_are_a_regular_file(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"w.{suffix}")
    (tmp_path / f"z.{suffix}").symlink_to("/dev/zero")
    for name in "wz":
        with pytest.raises(UsageError, match="are no file"):
            read_weights(tmp_path / f"{name}.{suffix}")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_beyond_all_memory_are_refused(tmp_path: Path, suffix: str) -> None:
    with (tmp_path / f"w.{suffix}").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises((UsageError, CorruptInputError), match=r"larger than the memory|damaged"):
        read_weights(tmp_path / f"w.{suffix}")


def test_of_several_networks_it_is_told_which_was_taken(tmp_path: Path) -> None:
    state, average = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    torch.save({"ema": average, "state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match=r"state_dict was taken, not ema; .*\['ema'\]"):
        assert torch.equal(read_weights(tmp_path / "w.pt")["w"], state["w"])


@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, lambda value: value.to("meta")])
def test_weights_without_plain_values_are_named(nets: str, tmp_path: Path, make: Any) -> None:
    model = load_network(f"{nets}:small", None)
    state = model.state_dict()
    name = next(name for name in state if name.endswith("weight"))
    torch.save({**state, name: make(state[name])}, tmp_path / "w.pt")
    with pytest.raises(CorruptInputError, match=f"{name} has no plain values|is damaged"):
        fill(model, tmp_path / "w.pt")


def test_random_weights_are_random_all_through_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    network = load_network("torchvision:lraspp_mobilenet_v3_large")
    assert next(network.parameters()).isfinite().all()


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:mobilenetv3_small_050"])
def test_a_network_of_timm_sees_as_many_channels_as_the_input_has(name: str) -> None:
    grey = load_network(name, shape=(1, 1, 32, 32))
    with torch.no_grad():
        assert grey(torch.zeros(1, 1, 32, 32)).shape == (1, 1000)
    first = next(m for m in load_network(name).modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == 3
