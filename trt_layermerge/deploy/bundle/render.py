"""``Contents`` → every file of a bundle, by path: the one way into a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files as resources

from trt_layermerge.deploy.bundle import deepstream, isaac_ros, manifest, triton
from trt_layermerge.deploy.bundle.contents import Contents, Files, Target
from trt_layermerge.deploy.bundle.layout import Layout, lines, onnx_places, parts
from trt_layermerge.deploy.bundle.readme import readme

VERIFY = "verify.py"

PLAIN_USAGE = """\
`{plan}` is a raw serialised engine: no header stands before it, so TensorRT's
`deserialize_cuda_engine` takes the bytes of the file as they are. `{sidecar}` says which library
and which GPU it was built for. `{onnx}` is the graph that it was built from; ONNX Runtime and
others take it too. Inputs and outputs are the same in every precision.
"""


def plain_layout(contents: Contents) -> Layout:
    """Returns ``model.PRECISION.plan`` with ``.json`` and ``.onnx`` beside it, and ``labels.txt``.

    Raises:
        UsageError: If a label does not fit into one line.
    """
    stem = f"model.{contents.precision}"
    places = onnx_places(contents, f"{stem}.onnx", f"{stem}.portable.onnx")
    places |= {"engine": f"{stem}.plan", "sidecar": f"{stem}.json"}
    files = {} if contents.labels is None else {"labels.txt": lines(contents.labels)}
    usage = PLAIN_USAGE.format(
        plan=places["engine"], sidecar=places["sidecar"], onnx=places["onnx"]
    )
    return Layout(places, usage, files)


LAYOUTS: Mapping[Target, Callable[[Contents], Layout]] = {
    "plain": plain_layout,
    "triton": triton.layout,
    "deepstream": deepstream.layout,
    "isaac-ros": isaac_ros.layout,
}


def render(contents: Contents, target: Target) -> Files:
    """Returns all files of a bundle by path; the same contents give the same bytes.

    Raises:
        UsageError: If the target cannot take this network; says what to type.
    """
    layout = LAYOUTS[target](contents)
    placed = parts(contents, layout.places)
    places = {role: path for role, (path, _) in placed.items()}
    files = dict(placed.values()) | layout.files
    files[VERIFY] = (resources(__package__) / "verify.py").read_bytes()
    files["README.md"] = readme(contents, target, places, layout.usage).encode()
    files[manifest.NAME] = manifest.manifest(contents, target, places, files)
    return files
