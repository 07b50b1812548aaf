"""What the guides say and show beside commands and recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.docs.pages import blocks, text_of
from trt_layermerge.doctor.board import JETPACK_OF_L4T
from trt_layermerge.errors import UntrustedInputError
from trt_layermerge.models.networks import load_network


def test_a_network_and_its_weights_are_read_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network, saving = blocks("docs/own-network.md", "python")
    made: dict[str, object] = {}
    exec(compile(network, "net.py", "exec"), made)
    (tmp_path / "net.py").write_text(network)
    whole = made["build"]()  # type: ignore[operator]
    torch.save(whole, "whole.pt")
    name = f"{tmp_path / 'net.py'}:build"
    with pytest.raises(UntrustedInputError, match="could execute code"):
        load_network(name, "whole.pt")
    exec(compile(saving, "saving.py", "exec"), {})
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = load_network(name, "net.pth")(images)
        assert torch.equal(found, whole.eval()(images)) and found.shape == (2, 10)


def test_what_a_jetson_brings_is_what_doctor_knows() -> None:
    rows = re.findall(r"^\| ([\d. or]+) \| ([\d.]+) \| (\w+)", text_of("docs/jetson.md"), re.M)
    known = dict((jetpack, tensorrt) for _, jetpack, tensorrt in JETPACK_OF_L4T if jetpack != "4")
    assert {(jetpack, tensorrt) for jetpack, tensorrt, _ in rows} == set(known.items())
    assert [tensorrt for _, tensorrt, int8 in rows if int8 == "no"] == ["8.5", "8.6"]
