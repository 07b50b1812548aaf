"""The room can be found one's way in: its docstring names every module in it."""

from __future__ import annotations

import re
from pathlib import Path

from trt_layermerge import pipeline
from trt_layermerge.pipeline.options import PACKAGE, STAGES


def test_every_module_is_named_where_a_newcomer_looks() -> None:
    here = Path(str(pipeline.__file__)).parent
    modules = {path.stem for path in here.glob("*.py")} - {"__init__"}
    named = set(re.findall(r"``(\w+)``", str(pipeline.__doc__)))
    assert modules - named == set(), "say in pipeline/__init__.py what these are for"
    assert named - modules - {*STAGES, PACKAGE} == set(), "these are gone"
