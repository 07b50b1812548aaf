"""Which names the Python bindings of each TensorRT version have: writes what the fakes know.

Run as ``python -m benchmarks.tensorrt_names WHEEL…`` with wheels of the bindings alone
(``pip download --no-deps tensorrt_bindings==8.6.1 tensorrt_cu12_bindings==10.3.0 …``) and a C
compiler. The bindings are imported with hollow libraries in place of TensorRT's own, which is
enough to look at every class and enumeration and not enough to build anything. The installed
TensorRT-RTX is read as it is. Writes ``tests/backends/tensorrt_names.json``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

NAMES = Path(__file__).parents[1] / "tests" / "backends" / "tensorrt_names.json"
CLASSES = (
    "Builder",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMERATIONS = (
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "ErrorCode",
    "HardwareCompatibilityLevel",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
)
HOLLOW = """
#define F(name) void *name(void) { return 0; }
F(createInferBuilder_INTERNAL) F(createInferRefitter_INTERNAL) F(createInferRuntime_INTERNAL)
F(createNvOnnxParser_INTERNAL) F(createNvOnnxParserRefitter_INTERNAL)
F(getBuilderPluginRegistry) F(getPluginRegistry) F(getNvOnnxParserVersion) F(initLibNvInferPlugins)
F(_ZN11nvuffparser15createUffParserEv) F(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
F(_ZN14nvcaffeparser117createCaffeParserEv) F(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
"""
LOOK = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
module = importlib.import_module(sys.argv[2])
classes, enumerations = json.loads(sys.argv[3])
found = {"version": module.__version__, "module": [n for n in dir(module) if n[0] != "_"]}
for name in classes:
    found[name] = [n for n in dir(getattr(module, name)) if n[0] != "_"]
for name in enumerations:
    members = getattr(getattr(module, name, None), "__members__", {})
    found[name] = {n: int(value) for n, value in members.items()}
print(json.dumps(found))
"""


def hollow_libraries(folder: Path) -> None:
    """Compiles libraries with TensorRT's names and nothing inside."""
    source = folder / "hollow.c"
    source.write_text(HOLLOW)
    for major in (8, 10, 11):
        for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers"):
            library = f"lib{name}.so.{major}"
            flags = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", "-o", library]
            subprocess.run(["cc", *flags, source.name], cwd=folder, check=True)


def look(folder: Path, module: str, libraries: Path | None) -> dict[str, Any]:
    """Returns the names of a module, imported by another Python."""
    path = {} if libraries is None else {"LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(folder), module, json.dumps([CLASSES, ENUMERATIONS])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **path},
    )
    names: dict[str, Any] = json.loads(done.stdout)
    return names


def combine(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns one table; a bit or a value for each version, none where the name is absent."""

    def rows(key: str) -> list[str]:
        return sorted({name for version in found for name in version[key]})

    used = rows("module")  # layers and plugins by the dozen, which nothing here touches
    kept = [n for n in used if not re.match(r"I[A-Z]\w*Layer$|.*[Pp]lugin|IAlgorithm|I?Dims", n)]
    return {
        "versions": [version["version"] for version in found],
        "module": {n: _bits(found, "module", n) for n in kept},
        "classes": {
            c: {n: _bits(found, c, n) for n in rows(c) if not n.startswith("add_") or c[1] != "N"}
            for c in CLASSES
        },
        "enumerations": {
            e: {n: [version[e].get(n) for version in found] for n in rows(e)} for e in ENUMERATIONS
        },
    }


def _bits(found: list[dict[str, Any]], key: str, name: str) -> str:
    return "".join(str(int(name in version[key])) for version in found)


def main(wheels: list[str]) -> None:
    """Reads every wheel and TensorRT-RTX, and writes the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hollow_libraries(folder)
        found = []
        for index, wheel in enumerate(wheels):
            zipfile.ZipFile(wheel).extractall(folder / str(index))
            found.append(look(folder / str(index), "tensorrt_bindings", folder))
        found.append(look(folder, "tensorrt_rtx", None))
    body = json.dumps(combine(found), indent=1, sort_keys=True)
    # One name a line, its values beside it.
    body = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", body)
    NAMES.write_text(body + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
