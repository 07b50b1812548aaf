"""Two rooms can be found one's way in: their docstrings name every module in them."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from trt_layermerge import pipeline, session
from trt_layermerge.pipeline.options import PACKAGE, STAGES


@pytest.mark.parametrize("room", [pipeline, session], ids=lambda room: room.__name__)
def test_every_module_is_named_where_a_newcomer_looks(room: ModuleType) -> None:
    here = Path(str(room.__file__)).parent
    modules = {path.stem for path in here.glob("*.py")} - {"__init__"}
    named = set(re.findall(r"``(\w+)``", str(room.__doc__)))
    assert modules - named == set(), f"say in {room.__name__} what these are for"
    assert named - modules - {*STAGES, PACKAGE} == set(), "these are gone"
