"""Who may know whom, and what may be imported where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trt_layermerge.cli.app import VERBS

PACKAGE = Path(__file__).parents[1] / "trt_layermerge"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}

KNOWS: dict[str, set[str]] = {
    "core": set(),
    "kinds": {"core", "blocks"},
    "search": {"core", "kinds"},
    "report": {"core", "kinds"},
    "backends": {"core", "onnx_reader"},
    "onnx_reader": {"core", "tracing"},
    "models": {"core", "onnx_reader"},
    "measure": {"core", "backends"},
    "tracing": {"core"},
    "blocks": {"core", "tracing"},
    "merge": {"core", "tracing", "blocks", "kinds"},
    "data": {"core"},
    "importance": {"core", "data", "tracing", "blocks", "kinds", "merge", "finetune"},
    "finetune": {"core", "data"},
    "export": {"core"},
    "deploy": {"core", "backends"},
    "quantize": {"core", "backends", "export"},
    "session": ROOMS - {"cli", "doctor", "pipeline", "session", "report"},
    "pipeline": ROOMS - {"cli", "pipeline"},
    "doctor": {"core", "backends", "measure"},
    "cli": {"core", "pipeline", "doctor"},
}

HEAVY = ("torch", "torchvision", "timm", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime")
HEAVY += ("onnx_graphsurgeon", "safetensors", "matplotlib", "scipy", "cuda", "pycuda")

WITHOUT_TORCH = ("core", "search", "report", "cli", "deploy", "quantize", "measure")

ONE_FILE_ONLY = ("tensorrt", "tensorrt_rtx", "cuda", "pycuda")


@dataclass(frozen=True)
class Import:
    """One import: in which file, of which module, and whether only when a function runs."""

    path: Path
    module: str
    deferred: bool

    @property
    def room(self) -> str:
        inside = self.path.relative_to(PACKAGE).parts
        return inside[0] if len(inside) > 1 else ""

    @property
    def target(self) -> str | None:
        """The room that is imported, or None for anything outside the rooms."""
        parts = self.module.split(".")
        known = parts[0] == "trt_layermerge" and len(parts) > 1 and parts[1] in ROOMS
        return parts[1] if known else None

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE.parent)} imports {self.module}"


def imports_of(path: Path) -> Iterator[Import]:
    """Yields every import of a file, those for type checkers only left out."""
    for statement in ast.parse(path.read_text()).body:
        yield from _visit(statement, path, deferred=False)


def _visit(node: ast.AST, path: Path, *, deferred: bool) -> Iterator[Import]:
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.Import):
        yield from (Import(path, alias.name, deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{path}: relative import"
        yield from (Import(path, f"{node.module}.{alias.name}", deferred) for alias in node.names)
    elif isinstance(node, ast.Call):
        yield from _dynamic(node, path)
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        children = node.orelse
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        deferred = True
    for child in children:
        yield from _visit(child, path, deferred=deferred)


def _dynamic(call: ast.Call, path: Path) -> Iterator[Import]:
    """Yields ``import_module("name")``, which imports like a statement does."""
    name = ast.unparse(call.func).rpartition(".")[2]
    if name in ("import_module", "__import__") and call.args:
        argument = call.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield Import(path, argument.value, deferred=True)


IMPORTS = [found for path in FILES for found in imports_of(path)]


def test_the_walk_sees_all_kinds_of_imports(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import hidden\nelse:\n    import e\n"
        "def f():\n    import g\n    importlib.import_module('h')\n"
        "try:\n    import i\nfinally:\n    pass\n"
    )
    seen = [(i.module, i.deferred) for i in imports_of(path)]
    expected = [
        ("a.b", False),
        ("c.d", False),
        ("e", False),
        ("g", True),
        ("h", True),
        ("i", False),
    ]
    assert seen == expected


def test_every_room_is_in_the_list() -> None:
    assert KNOWS.keys() >= ROOMS


def test_rooms_know_only_whom_they_may_know() -> None:
    strangers = [
        str(i)
        for i in IMPORTS
        if i.room in KNOWS and i.target not in (None, i.room) and i.target not in KNOWS[i.room]
    ]
    assert strangers == []


def test_core_is_the_standard_library_and_numpy_and_few_others_in_one_file_each() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "trt_layermerge"}
    found = {(i.path.name, _top(i)) for i in IMPORTS if i.room == "core"}
    assert {pair for pair in found if pair[1] not in allowed} == {
        ("codec.py", "pydantic"),
        ("strict_yaml.py", "yaml"),
    }


@pytest.mark.parametrize("module", ["measure.agent.run", "measure.agent.__main__"])
def test_the_agent_does_without_pydantic(module: str) -> None:
    done = in_blocked_process(f"import trt_layermerge.{module}", "pydantic", *HEAVY)
    assert done.returncode == 0, done.stderr


def test_rooms_without_torch_never_import_it() -> None:
    found = [i for i in IMPORTS if i.room in WITHOUT_TORCH and _top(i) in ("torch", "torchvision")]
    assert [str(i) for i in found] == []


LIGHT = ("pipeline/recipe.py", "pipeline/options.py", "pipeline/__init__.py", "doctor/")


def test_the_recipe_and_the_command_line_load_nothing_heavy() -> None:
    places = tuple(str(PACKAGE / place) for place in ("cli/", *LIGHT))
    light = [i for i in IMPORTS if not i.deferred and str(i.path).startswith(places)]
    assert light
    assert [str(i) for i in light if _top(i) in HEAVY] == []


@pytest.mark.parametrize("library", ONE_FILE_ONLY)
def test_each_device_library_is_imported_in_one_file(library: str) -> None:
    files = {i.path for i in IMPORTS if _top(i) == library}
    assert len(files) <= 1, files


def _top(found: Import) -> str:
    return found.module.partition(".")[0]


def test_every_extra_that_an_error_names_exists() -> None:
    extras = (PACKAGE.parent / "pyproject.toml").read_text()
    named = {
        call.args[2].value
        for path in FILES
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "MissingDependencyError"
        and isinstance(call.args[2], ast.Constant)
    }
    assert "onnxruntime" in named
    assert [name for name in sorted(named) if f"\n{name} = [" not in extras] == []


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked in this test")

sys.meta_path.insert(0, Blocker())
"""


def in_blocked_process(code: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    """Runs some code in a new Python that cannot import the given libraries."""
    script = BLOCKED.format(blocked=set(blocked)) + code
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


def test_the_blocker_blocks() -> None:
    done = in_blocked_process("import numpy", "numpy")
    assert "numpy is blocked" in done.stderr


# Time of the processor, not of the wall, so that a busy machine does not decide.


def test_the_package_imports_in_under_a_second_without_numpy() -> None:
    code = (
        "import time; start = time.process_time()\n"
        "import trt_layermerge\n"
        "print(trt_layermerge.__version__, time.process_time() - start)"
    )
    done = in_blocked_process(code, *HEAVY, "numpy")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[1]) < 1.0


def test_every_help_works_bare_in_under_a_second_each() -> None:
    verbs = ["", *(verb.__name__ for verb in VERBS)]
    code = (
        "import time; start = time.process_time()\n"
        "from trt_layermerge.cli.main import main\n"
        "print('seconds', time.process_time() - start)\n"
        f"for verb in {verbs!r}:\n"
        "    start = time.process_time()\n"
        "    assert main([*verb.split(), '--help']) == 0, verb\n"
        "    print('seconds', time.process_time() - start)\n"
    )
    done = in_blocked_process(code, *HEAVY)
    assert done.returncode == 0, done.stderr
    seconds = [float(t.split()[1]) for t in done.stdout.splitlines() if t.startswith("seconds")]
    assert len(seconds) == len(verbs) + 1
    assert seconds[0] + max(seconds[1:]) < 1.0


@pytest.mark.parametrize(
    "module",
    [
        "core.tables",
        "core.plan",
        "core.graph",
        "kinds",
        "search",
        "pipeline.recipe",
        "doctor",
    ],
)
def test_these_import_without_anything_heavy(module: str) -> None:
    done = in_blocked_process(f"import trt_layermerge.{module}", *HEAVY)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["report", "measure", "backends", "deploy", "quantize"])
def test_these_import_without_torch(module: str) -> None:
    done = in_blocked_process(f"import trt_layermerge.{module}", "torch", "torchvision", "timm")
    assert done.returncode == 0, done.stderr
