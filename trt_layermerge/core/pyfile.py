"""Functions of Python files of the user's own: ``FILE.py:FUNCTION``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trt_layermerge.errors import UsageError, foreign


def function_of(file: Path, name: str) -> Callable[[], Any]:
    """Returns a function of a Python file, which is run.

    Raises:
        UsageError: If there is no such file, it cannot be run, or has no such function.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {file}; check the name before the colon: {file}:{name}")
    spec = importlib.util.spec_from_file_location(f"_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} is no Python file; name one that defines {name}")
    module = importlib.util.module_from_spec(spec)
    with foreign(lambda why: UsageError(f"{file} cannot be run: {why}")):
        spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        raise UsageError(f"{file} has no function {name!r}; check the name after the colon")
    return found  # type: ignore[no-any-return]
