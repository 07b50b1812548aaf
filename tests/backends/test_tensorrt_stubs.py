"""Our use of TensorRT, checked by mypy against the published stubs of TensorRT 10.13.

Fetches the wheel ``tensorrt-stubs`` with pip, so it is ``slow``. In our sources the library is a
value, since its name is known only when they run; in a copy of them every ``api.module`` is made
the module itself, so that each class, method, argument and enumeration is looked up in the stubs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from trt_layermerge import backends

WHEEL = "tensorrt-stubs==10.13.0.35.1"
SOURCES = sorted(Path(backends.__file__).parent.glob("tensorrt*.py"))
# The stubs were generated, and not all of them is Python.
MENDED = (
    ("power: Weights = None, channel_axis: int)", "power: Weights = None, channel_axis: int = 0)"),
    (", in: list[", ", in_: list["),
)
# What is wrong in the stubs, or belongs to TensorRT-RTX alone and stands behind a ``hasattr``.
KNOWN = (
    'expected "Dims"',  # a tuple of int becomes a Dims, as in NVIDIA's own samples
    'has incompatible type "Dims"; expected "Iterable',  # it is a sequence by __getitem__
    'Module has no attribute "ComputeCapability"',
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the stubs of ``tensorrt``, mended so that they can be read."""
    folder = tmp_path_factory.mktemp("stubs")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    fetched = subprocess.run(fetch, capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"{WHEEL} cannot be fetched: {fetched.stderr.strip()[-200:]}")
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    path = folder / "tensorrt_bindings" / "tensorrt.pyi"
    text = path.read_text()
    for broken, mended in MENDED:
        assert broken in text
        text = text.replace(broken, mended)
    path.write_text(text)
    return folder


def complaints(stubs: Path, folder: Path, changes: dict[str, str]) -> list[str]:
    """Returns what mypy says of our sources, the known faults of the stubs left out.

    Args:
        stubs: Where the stubs are.
        folder: Where to copy the sources to.
        changes: Text to replace in them, for a negative control.
    """
    package = folder / "checked"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for source in SOURCES:
        text = re.sub(r"\b(?:self\._api|api|self)\.module\.", "trt.", source.read_text())
        opening = "from __future__ import annotations\n"
        text = text.replace(opening, opening + "import tensorrt as trt\n", 1)
        for right, wrong in changes.items():
            text = text.replace(right, wrong)
        (package / source.name).write_text(text)
    options = ["--config-file=", "--strict", "--ignore-missing-imports", "--follow-imports=silent"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", str(stubs / "cache"), "checked"],
        cwd=folder,
        env={"MYPYPATH": f"{stubs}:{SOURCES[0].parents[2]}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "errors prevented further checking" not in done.stdout, done.stdout[-2000:]
    assert "checked 1" in done.stdout, done.stdout[-2000:] + done.stderr
    ours = [line for line in done.stdout.splitlines() if line.startswith("checked/")]
    return [line for line in ours if not any(fault in line for fault in KNOWN)]


def test_our_use_of_tensorrt_fits_its_types(stubs: Path, tmp_path: Path) -> None:
    assert complaints(stubs, tmp_path, {}) == []


def test_wrong_uses_are_found(stubs: Path, tmp_path: Path) -> None:
    wrong = {
        "config.set_timing_cache(cache, False)": "config.set_timing_cache(False)",
        "builder.create_optimization_profile()": "builder.create_profile()",
        "trt.MemoryPoolType.WORKSPACE": "trt.MemoryPoolType.WORK",
        "parser.parse(model)": "parser.parse(model, 5)",
    }
    found = complaints(stubs, tmp_path, wrong)
    for words in ('"set_timing_cache"', '"create_profile"', '"WORK"', '"parse" of "OnnxParser"'):
        assert any(words in line for line in found), (words, found)
