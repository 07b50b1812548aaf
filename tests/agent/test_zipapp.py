"""The one file for the device: small, the same each time, of Python 3.8, and in need of nothing."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

from tests.agent import folders
from trt_layermerge.measure.agent.zipapp import MODULES, sources, write_zipapp

PACKAGE = folders.ROOT / "trt_layermerge"
HELD_TO_38 = [*sources(), PACKAGE / "measure/agent/zipapp.py"]
BLOCKED = ("torch", "torchvision", "onnx", "onnxruntime", "pydantic", "typer", "rich", "scipy")
BLOCKED += ("tensorrt", "tensorrt_rtx", "cuda", "pycuda", "yaml", "safetensors", "matplotlib")


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zipapp(tmp_path_factory.mktemp("agent") / "agent.pyz")


def test_it_is_small_executable_and_the_same_each_time(pyz: Path, tmp_path: Path) -> None:
    again = write_zipapp(tmp_path / "again.pyz")
    assert pyz.read_bytes() == again.read_bytes()
    assert pyz.stat().st_size < 1_000_000
    assert os.access(pyz, os.X_OK)
    assert pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_it_holds_what_is_stated(pyz: Path) -> None:
    names = set(zipfile.ZipFile(pyz).namelist())
    assert names == {"__main__.py", *(str(p.relative_to(folders.ROOT)) for p in sources())}
    assert {"trt_layermerge/measure/timing.py", "trt_layermerge/measure/agent/run.py"} <= names
    assert not any("onnxruntime" in n or "torch" in n or "zipapp" in n for n in names)
    for pattern in MODULES:
        assert list(PACKAGE.glob(pattern)), pattern


def test_its_modules_are_those_that_the_linter_holds_to_python_3_8() -> None:
    settings = tomllib.loads((folders.ROOT / "pyproject.toml").read_text())
    held = settings["tool"]["ruff"]["per-file-target-version"]
    known = {p for pattern in held for p in expand(pattern)} | {PACKAGE / "__init__.py"}
    assert set(HELD_TO_38) <= known
    assert set(held.values()) == {"py38"}


def expand(pattern: str) -> Iterator[Path]:
    """Yields the files of a pattern such as ``a/{b,c*}.py``."""
    head, brace, rest = pattern.partition("{")
    inner, _, tail = rest.partition("}")
    for choice in inner.split(",") if brace else [""]:
        yield from folders.ROOT.glob(head + choice + tail)


@pytest.mark.parametrize("path", HELD_TO_38, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_is_python_3_8(path: Path) -> None:
    text = path.read_text()
    ast.parse(text, feature_version=(3, 8))
    assert evaluated_too_new(text) == []
    assert vermin(text) <= (3, 8)


def vermin(text: str) -> tuple[int, int]:
    """Returns the least Python 3 that a text needs, by what it calls and how it is written."""
    import vermin

    config = vermin.Config()
    _, version = vermin.visit(text, config).minimum_versions()
    return version if isinstance(version, tuple) else (3, 0)


RENAMED = {"dict", "list", "tuple", "set", "frozenset", "type"}


def evaluated_too_new(text: str) -> list[str]:
    """Returns subscripts and unions of types that are evaluated, not only written as annotations.

    Neither is a matter of syntax, and vermin does not see them: ``Row = dict[str, int]`` needs 3.9.
    """
    tree = ast.parse(text)
    new = set(RENAMED)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "collections.abc":
            new |= {alias.asname or alias.name for alias in node.names}
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            if node.value.id in new:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = (node.left, node.right)
            if any(isinstance(s, ast.Constant) and s.value is None for s in sides):
                found.append(ast.unparse(node))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "X = dict[str, int]",
        "from collections.abc import Mapping\nX = Mapping[str, int]",
        "class A(list[int]): pass",
        "X = int | None",
    ],
)
def test_what_the_parser_does_not_see_is_found(text: str) -> None:
    ast.parse(text, feature_version=(3, 8))
    assert evaluated_too_new(text)


@pytest.mark.parametrize(
    "text",
    [
        "def f(x: dict[str, int] | None) -> list[int]: ...",
        "if TYPE_CHECKING:\n    X = dict[str, int]",
        "from typing import Mapping\nX = Mapping[str, int]",
        "X = 1 | 2",
    ],
)
def test_what_is_never_evaluated_is_left_alone(text: str) -> None:
    assert evaluated_too_new(text) == []


def test_vermin_would_object() -> None:
    assert vermin("'a'.removeprefix('b')") == (3, 9)
    assert vermin("from typing import TypeAlias") == (3, 10)
    assert vermin("import itertools\nitertools.pairwise([])") == (3, 10)


def blocked_environment(tmp_path: Path) -> dict[str, str]:
    """Returns an environment whose Pythons, children too, cannot import what is blocked."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {BLOCKED!r}:\n"
        "            raise ImportError(name + ' is blocked in this test')\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_it_runs_with_numpy_and_nothing_else(pyz: Path, tmp_path: Path) -> None:
    env = blocked_environment(tmp_path)
    control = [sys.executable, "-c", "import onnx"]
    done = subprocess.run(control, env=env, capture_output=True, text=True, check=False)
    assert "onnx is blocked" in done.stderr

    folder = tmp_path / "jobs"
    jobs = {"s": ["s"], "a": ["x"], "b": ["x", "y"]}
    folders.write(folder, folders.body(folder, jobs, sentinel="s"))
    run = [sys.executable, "-W", "error", str(pyz), str(folder)]
    done = subprocess.run(
        run, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert {key: type(value) for key, value in folders.table(folder).items()} == dict.fromkeys(
        jobs, list
    )


def test_every_module_of_it_is_importable_with_numpy_alone(pyz: Path, tmp_path: Path) -> None:
    """Each in turn, in an order that hides no missing import: no library is looked for as yet."""
    names = [n[:-3] for n in zipfile.ZipFile(pyz).namelist() if n.startswith("trt_layermerge/")]
    modules = [n.replace("/__init__", "").replace("/", ".") for n in names]
    assert len(modules) > 30
    code = (
        f"import sys; sys.path.insert(0, {str(pyz)!r})\n"
        "from importlib import import_module\n"
        f"for name in {modules!r}:\n"
        "    for known in [m for m in sys.modules if m.startswith('trt_layermerge')]:\n"
        "        del sys.modules[known]\n"
        "    import_module(name)\n"
        "    assert str(import_module('trt_layermerge').__file__).startswith(sys.path[0])\n"
    )
    python = old_python() or sys.executable
    done = subprocess.run(
        [python, "-W", "error", "-c", code],
        env=blocked_environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def old_python() -> str | None:
    """Returns a Python 3.8 or 3.9 that has numpy, if there is one."""
    paths = filter(None, map(shutil.which, ("python3.8", "python3.9")))
    return next((path for path in paths if _has_numpy(path)), None)


def _has_numpy(python: str) -> bool:
    done = subprocess.run([python, "-c", "import numpy"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(old_python() is None, reason="there is no Python 3.8 or 3.9 with numpy here")
def test_it_runs_on_an_old_python(pyz: Path, tmp_path: Path) -> None:
    folder = folders.singles(tmp_path, 2)
    python = old_python()
    assert python is not None
    done = subprocess.run(
        [python, str(pyz), str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert set(folders.table(folder)) == {"k0", "k1"}


def test_version_and_help(pyz: Path) -> None:
    from trt_layermerge import __version__

    for argument, said in (("--version", __version__), ("--help", "JOBS_DIR")):
        done = subprocess.run(
            [sys.executable, str(pyz), argument], capture_output=True, text=True, check=True
        )
        assert said in done.stdout
        assert "--worker" not in done.stdout
