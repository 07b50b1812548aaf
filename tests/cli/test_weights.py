"""Weights as people have them, at the command line: whole networks, arguments, other networks."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trt_layermerge.cli.main import main
from trt_layermerge.core.pyfile import function_of

NETS = """
from collections import OrderedDict
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, depth=3, classes=4, body="body"):
        super().__init__()
        sizes = [3] + [width] * depth
        convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:])]
        self.body = nn.Sequential(OrderedDict((f"{body}{i}", c) for i, c in enumerate(convs)))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        for conv in self.body:
            x = conv(x).relu()
        return self.head(x.mean((2, 3)))
"""

State = dict[str, torch.Tensor]


@pytest.fixture
def net(tmp_path: Path) -> Callable[..., nn.Module]:
    """Returns what makes networks of a file that is no module of this process."""
    (tmp_path / "nets.py").write_text(NETS)
    return function_of(tmp_path / "nets.py", "Net")


def inspected(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], net: str = "Net"
) -> tuple[int, str]:
    typed = ["--run", "x", "--runs-dir", str(folder / "runs"), "--input", "1x3x16x16"]
    model = ["--model", f"{folder}/nets.py:{net}", "--weights", str(weights)]
    code = main(["inspect", *typed, *model, "-q"])
    return code, capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("scripted", [False, True])
def test_a_whole_network_gets_the_lines_to_type(
    net: Callable[..., nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    scripted: bool,
) -> None:
    whole = tmp_path / "whole.pt"
    if scripted:
        torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))).save(str(whole))
    else:
        script = f"import torch, nets; torch.save(nets.Net(), {str(whole)!r})"
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    code, err = inspected(tmp_path, whole, capsys)
    assert code == 7 and "is a whole network" in err and "it was not read" in err
    lines = [line.strip() for line in err.splitlines() if line.startswith("  ")]
    assert len(lines) == 3
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, check=True)
    if not scripted:
        assert "(nets.Net)" in err
        assert inspected(tmp_path, tmp_path / "weights.pt", capsys)[0] == 0
    assert read_keys(tmp_path / "weights.pt")


def read_keys(path: Path) -> set[str]:
    return set(torch.load(path, weights_only=True))


def test_arguments_of_a_training_script_are_read_and_nothing_runs(
    net: Callable[..., nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = argparse.Namespace(lr=0.1, out=Path("runs"), nested=argparse.Namespace(a=[1, None]))
    saved = {"model": net().state_dict(), "args": arguments, "epoch": 3}
    torch.save(saved, tmp_path / "checkpoint.pt")
    assert inspected(tmp_path, tmp_path / "checkpoint.pt", capsys) == (0, "")
    arguments.hook = Canary(tmp_path / "canary")
    torch.save(saved, tmp_path / "checkpoint.pt")
    code, err = inspected(tmp_path, tmp_path / "checkpoint.pt", capsys)
    assert code == 7 and "holds more than tensors (" in err and "open)" in err
    assert not (tmp_path / "canary").exists()


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


def renamed(state: State, change: Callable[[str], str]) -> State:
    return {change(name): value for name, value in state.items()}


MISMATCHES: list[tuple[Callable[[Any], State], str]] = [
    (
        lambda net: renamed(net().state_dict(), "backbone.{}".format),
        "8 names differ by 'backbone.', which the file has in front of them; save the file again "
        "with {k.removeprefix('backbone.'): v for k, v in state.items()}",
    ),
    (
        lambda net: {k[5:]: v for k, v in net(depth=4).state_dict().items() if k[:4] == "body"},
        "which the network has in front of them; save the file again with {'body.' + k: v",
    ),
    (
        lambda net: net(classes=10).state_dict(),
        "only the last layer differs: the file answers with 10 values and the network with 4",
    ),
    (lambda net: net(width=16).state_dict(), "a network 2 times as wide"),
    (lambda net: net(depth=5).state_dict(), "a network with more layers"),
    (lambda net: net(depth=2).state_dict(), "a network with fewer layers"),
    (lambda net: renamed(net(width=5).state_dict(), "{}_".format), "of another architecture"),
]


@pytest.mark.parametrize(("make", "guessed"), MISMATCHES)
def test_weights_that_do_not_fit_show_both_sides_and_a_guess(
    net: Callable[..., nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Any], State],
    guessed: str,
) -> None:
    state = {name: value.clone() for name, value in make(net).items()}
    save_file(state, tmp_path / "w.safetensors")
    code, err = inspected(tmp_path, tmp_path / "w.safetensors", capsys)
    assert code == 7 and guessed in err, err
    assert err.count("\n") == 1 and len(err) < 900
    own = net().state_dict()
    for there, other, words in (
        (own, state, "missing from the file"),
        (state, own, "not in the network"),
    ):
        lacking = sorted(there.keys() - other.keys())
        assert (words in err) == bool(lacking)
        assert all(name in err for name in lacking[:1])
    assert not (tmp_path / "runs").exists()
    assert main(["inspect", "--run", "x", "--weights", str(tmp_path / "no.pt"), "--json"]) == 2
    assert "error" in json.loads(capsys.readouterr().out)
