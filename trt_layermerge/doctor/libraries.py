"""Python and the libraries behind the backends.

Libraries are imported in processes of their own: a broken one may end the process it is in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from trt_layermerge.doctor.board import APT_TENSORRT
from trt_layermerge.doctor.host import Finding, Host

Facts: TypeAlias = Mapping[str, Any]

OLDEST_PYTHON = (3, 10)


@dataclass(frozen=True, slots=True)
class Library:
    """How to ask for a library, and how to get it.

    Attributes:
        topic: Name of the module.
        code: Python that prints one JSON object of facts, ``version`` among them.
        remedy: What to type where it is missing.
        describe: Maps the facts to what is said beside the version.
    """

    topic: str
    code: str
    remedy: str
    describe: Callable[[Facts], str] = lambda facts: ""


def _torch(facts: Facts) -> str:
    if facts["gpu"]:
        return f", CUDA {facts['cuda']} on {facts['gpu']}"
    return ", computes on the CPU"


LIBRARIES = (
    Library(
        "torch",
        "import json, torch\n"
        "gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None\n"
        "print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda, 'gpu': gpu}))",
        "pip install torch",
        _torch,
    ),
    Library(
        "onnxruntime",
        "import json, onnxruntime as o\n"
        "print(json.dumps({'version': o.__version__, 'by': o.get_available_providers()}))",
        "pip install 'trt-layermerge[onnxruntime]'",
        lambda facts: f", {', '.join(facts['by'])}",
    ),
    Library(
        "tensorrt",
        "import json, tensorrt\nprint(json.dumps({'version': tensorrt.__version__}))",
        "pip install 'trt-layermerge[tensorrt]'",
    ),
    Library(
        "tensorrt_rtx",
        "import json, tensorrt_rtx\nprint(json.dumps({'version': tensorrt_rtx.__version__}))",
        "pip install 'trt-layermerge[tensorrt-rtx]'",
        lambda facts: ", builds engines without a GPU; running them needs one",
    ),
    Library(
        "polygraphy",
        "import json, polygraphy\nprint(json.dumps({'version': polygraphy.__version__}))",
        "pip install 'trt-layermerge[polygraphy]'",
        lambda facts: ", finds the layer that an engine gets wrong (docs/debugging.md)",
    ),
)


def libraries(host: Host, jetson: bool) -> tuple[Finding, ...]:
    """Returns what is known of Python and of every library."""
    return (python(host), *(library(host, wanted, jetson) for wanted in LIBRARIES))


def python(host: Host) -> Finding:
    """Returns whether Python is new enough."""
    executable, version = host.python
    found = f"{version} ({executable})"
    if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_PYTHON:
        return Finding("python", "ok", found)
    return Finding("python", "missing", found, "install Python 3.10 or newer")


def library(host: Host, wanted: Library, jetson: bool) -> Finding:
    """Returns whether a library imports, and what it says of itself.

    Args:
        host: The machine.
        wanted: The library.
        jetson: Whether the machine is a Jetson.
    """
    if wanted.topic == "tensorrt_rtx" and jetson:
        return Finding(wanted.topic, "none", "cannot target a Jetson; use tensorrt")
    remedy = APT_TENSORRT if wanted.topic == "tensorrt" and jetson else wanted.remedy
    answer = host.ask((host.python[0], "-c", wanted.code))
    if not answer.worked:
        reason = (answer.errors.splitlines() or ["it ended without a word"])[-1]
        absent = reason.startswith("ModuleNotFoundError")
        found = "not installed" if absent else f"does not import: {reason}"
        return Finding(wanted.topic, "missing", found, remedy)
    try:
        facts = json.loads(answer.output.splitlines()[-1])
        return Finding(wanted.topic, "ok", f"{facts['version']}{wanted.describe(facts)}")
    except (ValueError, KeyError, IndexError, TypeError):
        found = f"answers strangely: {answer.output[-200:]!r}"
        return Finding(wanted.topic, "missing", found, remedy)
