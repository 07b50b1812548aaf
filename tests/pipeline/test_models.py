"""Networks by name, and weights that do not do what weights should."""

from __future__ import annotations

import pickle
from pathlib import Path

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
from trt_layermerge.pipeline.models import load_network, network_inputs, read_weights
from trt_layermerge.pipeline.sections import ModelSection

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


def section(nets: str, weights: Path | None = None, factory: str = "small") -> ModelSection:
    return ModelSection(name=f"{nets}:{factory}", weights=None if weights is None else str(weights))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_checkpoints_and_safetensors_fill_the_network(
    nets: str, tmp_path: Path, wrap: str | None
) -> None:
    state = small().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    prefixed = {f"module.{k}": v for k, v in state.items()}
    torch.save({wrap: prefixed} if wrap else prefixed, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        loaded = load_network(section(nets, tmp_path / name))
        assert not loaded.training
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, state[key])


def test_random_weights_are_the_same_whenever_a_run_continues(nets: str) -> None:
    torch.manual_seed(1)
    first, drawn = load_network(section(nets)), torch.rand(1)
    second = load_network(section(nets))
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
        load_network(section(nets, path))
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
                load_network(section(nets, tmp_path / name))


def test_weights_of_another_network_are_named(nets: str, tmp_path: Path) -> None:
    state = small().state_dict()
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    state["extra"] = torch.zeros(1)
    del state["1.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CorruptInputError) as caught:
        load_network(section(nets, tmp_path / "w.safetensors"))
    text = str(caught.value)
    assert "0.weight is (4, 3, 5, 5), not (4, 3, 3, 3)" in text
    assert "1.bias is missing" in text and "extra is not in the network" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(nets: str, tmp_path: Path, value: float) -> None:
    state = small().state_dict()
    state["1.running_var"][2] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CorruptInputError, match=r"1\.running_var has values that are not finite"):
        load_network(section(nets, tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet18", UsageError, "names no network"),
        ("nowhere.py:small", UsageError, "there is no file"),
        ("no.such.package:net", UsageError, "cannot import"),
        ("torch.nn:NoSuchNet", UsageError, "no factory"),
        ("model.onnx", UsageError, "there is no ONNX file"),
        ("NETS:text", UsageError, "no factory"),
        ("NETS:missing", UsageError, "no factory"),
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
        load_network(ModelSection(name=name.replace("NETS", nets)))


def test_missing_weights_are_named(nets: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.safetensors"):
        load_network(section(nets, tmp_path / "none.safetensors"))


def test_a_changed_file_is_another_network(nets: str, tmp_path: Path) -> None:
    before = network_inputs(section(nets))
    Path(nets).write_text(NETS.replace("4", "5"))
    assert network_inputs(section(nets)) != before


def test_tensors_are_read_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["a"], torch.ones(2))
