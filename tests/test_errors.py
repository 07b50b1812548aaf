"""Exit codes travel between processes and come back as the error that they stand for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trt_layermerge.deploy.machine import rebuild_command
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    LayerMergeError,
    StickyDeviceError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
    command,
    error_of,
)
from trt_layermerge.session.deployed import deployed_model
from trt_layermerge.session.verifying import bisect_command

PACKAGE = Path(__file__).parents[1] / "trt_layermerge"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, UsageError),
        (3, UnsupportedModelError),
        (4, DeviceError),
        (7, CorruptInputError),
        (1, DeviceError),
        (137, DeviceError),
    ],
)
def test_the_error_of_a_code(code: int, kind: type[LayerMergeError]) -> None:
    error = error_of(code, "what happened")
    assert type(error) is kind
    assert str(error) == "what happened"


@pytest.mark.parametrize("kind", [UsageError, DeviceError, StickyDeviceError, UntrustedInputError])
def test_a_code_goes_there_and_back(kind: type[LayerMergeError]) -> None:
    assert error_of(kind.exit_code, "").exit_code == kind.exit_code


def test_a_printed_command_is_one_that_a_shell_reads_back(tmp_path: Path) -> None:
    run = tmp_path / "all my runs" / "net v2; (old)"
    typed = ["--run", "net v2; (old)", "--runs-dir", str(run.parent)]
    assert shlex.split(command("build", run)) == ["trt-layermerge", "build", *typed]
    assert command("build", Path("runs/net")) == "trt-layermerge build --run net"
    assert command("build", Path("runs/net").absolute()) == "trt-layermerge build --run net"
    assert shlex.split(rebuild_command(run / "engines" / "gpu" / "m.plan"))[2:] == typed
    with pytest.raises(UsageError) as caught:
        deployed_model(run, "merged", "fp32", "fp32")
    assert shlex.split(str(caught.value).rpartition(": ")[2])[2:] == typed
    model = f"{run}/debug/model.fp16.onnx"
    assert shlex.split(bisect_command(model, 0.1, None))[3] == model


def test_commands_about_a_run_are_put_together_in_one_place() -> None:
    """A name or a path in a command of a message's own would not be quoted."""
    own = re.compile(r"trt-layermerge [a-z]+[^\n]*\{|--run(?:s-dir)? \{|--import \{")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in path.read_text().splitlines()
        if own.search(line)
    ]
    assert found == []
