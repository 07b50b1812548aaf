"""ONNX Runtime that breaks in a process of its own, by the names of the networks it is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SITE = '''"""Found by every Python that is started with this folder on its path."""
import json, os, time
TROUBLES = json.loads(open(os.path.join(os.path.dirname(__file__), "troubles.json")).read())

def breaking(session, trouble):
    right = session.run_with_iobinding
    if trouble == "open":
        os.abort()
    def run(binding):
        if trouble == "abort": os.abort()
        if trouble == "exit": os._exit(3)
        if trouble == "hang": time.sleep(3600)
        if trouble == "slow": time.sleep(0.4)
        if trouble == "memory": raise MemoryError
        if trouble == "eats": bytearray(1 << 60)
        if trouble == "segv": os.kill(os.getpid(), 11)
        if trouble == "odd": raise KeyError("odd")
        return right(binding)
    return run

try:
    import onnxruntime
except ImportError:
    onnxruntime = None
else:
    Real = onnxruntime.InferenceSession
    class Session(Real):
        def __init__(self, model, *rest, **more):
            super().__init__(model, *rest, **more)
            for name, trouble in TROUBLES.items():
                if name.encode() in model:
                    self.run_with_iobinding = breaking(self, trouble)
    onnxruntime.InferenceSession = Session
'''


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, troubles: Mapping[str, str]) -> None:
    """Has every process started from now on break networks: by a part of their bytes, how."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    (folder / "troubles.json").write_text(json.dumps(troubles))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def network(name: str) -> bytes:
    """Returns a convolution of that name, which ONNX Runtime runs in microseconds."""
    weight = numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w")
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 4, size, size])
        for end, size in (("x", 8), ("y", 6))
    ]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], name, ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    found: bytes = onnx.ModelProto.SerializeToString(model)
    return found
