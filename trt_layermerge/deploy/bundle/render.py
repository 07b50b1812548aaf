"""``Contents`` → every file of a bundle, by path: the one way into a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files as resources

from trt_layermerge.deploy.bundle import deepstream, isaac_ros, manifest, plain, triton
from trt_layermerge.deploy.bundle.contents import Contents, Files, Target
from trt_layermerge.deploy.bundle.layout import Layout, parts
from trt_layermerge.deploy.bundle.readme import readme

VERIFY = "verify.py"

LAYOUTS: Mapping[Target, Callable[[Contents], Layout]] = {
    "plain": plain.layout,
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
