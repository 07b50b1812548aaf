"""``plain``: engine, ONNX and labels side by side, for programs that call TensorRT themselves."""

from __future__ import annotations

from trt_layermerge.deploy.bundle.contents import Contents
from trt_layermerge.deploy.bundle.layout import Layout, lines, onnx_places

USAGE = """\
`{plan}` is a raw serialised engine: no header stands before it, so TensorRT's
`deserialize_cuda_engine` takes the bytes of the file as they are. `{sidecar}` says which library
and which GPU it was built for. `{onnx}` is the graph that it was built from; ONNX Runtime and
others take it too. Inputs and outputs are the same in every precision.
"""


def layout(contents: Contents) -> Layout:
    """Returns ``model.PRECISION.plan`` with ``.json`` and ``.onnx`` beside it, and ``labels.txt``.

    Raises:
        UsageError: If a label does not fit into one line.
    """
    stem = f"model.{contents.precision}"
    places = onnx_places(contents, f"{stem}.onnx", f"{stem}.portable.onnx")
    places |= {"engine": f"{stem}.plan", "sidecar": f"{stem}.json"}
    files = {} if contents.labels is None else {"labels.txt": lines(contents.labels)}
    usage = USAGE.format(plan=places["engine"], sidecar=places["sidecar"], onnx=places["onnx"])
    return Layout(places, usage, files)
