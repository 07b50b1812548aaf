"""The agent in one file that any Python from 3.8 on runs, with numpy and TensorRT beside it.

The same sources give the same bytes: the time and the order of the files are fixed.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import trt_layermerge
from trt_layermerge.core.jsonio import write_bytes

NAME = "trt-layermerge-agent.pyz"

MODULES = (
    "__init__.py",
    "errors.py",
    "core/__init__.py",
    "core/device.py",
    "core/jsonio.py",
    "core/scratch.py",
    "backends/__init__.py",
    "backends/base.py",
    "backends/registry.py",
    "backends/host.py",
    "backends/cuda*.py",
    "backends/tensorrt*.py",
    "measure/__init__.py",
    "measure/timing.py",
    "measure/agent/*.py",
)
"""What is in the file, below the package; a star stands for any rest of a name."""

_HERE = "measure/agent/zipapp.py"
_TIME = (1980, 1, 1, 0, 0, 0)
_MAIN = '''"""Starts the agent."""
import sys

if sys.version_info < (3, 8):
    sys.stderr.write("error: the agent needs Python 3.8; type: python3.8 %s\\n" % sys.argv[0])
    sys.exit(4)

from trt_layermerge.measure.agent.__main__ import main

sys.exit(main())
'''


def sources() -> list[Path]:
    """Returns the files of the agent, in order."""
    package = Path(trt_layermerge.__file__).parent
    found = {path for pattern in MODULES for path in package.glob(pattern)}
    return sorted(found - {package / _HERE})


def write_zipapp(path: Path) -> Path:
    """Writes the agent's one file, executable; returns its path. Raises ``DeviceError``."""
    package = Path(trt_layermerge.__file__).parent
    content = {"__main__.py": _MAIN.encode()}
    content.update({f"{package.name}/{p.relative_to(package)}": p.read_bytes() for p in sources()})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            file.writestr(entry, data, zipfile.ZIP_DEFLATED)
    write_bytes(path, b"#!/usr/bin/env python3\n" + archive.getvalue())
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    print(write_zipapp(Path("build") / NAME))
