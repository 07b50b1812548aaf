"""``package``: a finished run → ``deploy/TARGET``, one bundle for each target, ``package.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_layermerge.core.jsonio import Json, read_json, write_json
from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.data_files import data_inputs
from trt_layermerge.pipeline.packaging import contents_of, packaged_precision, refuse_bundles
from trt_layermerge.pipeline.recipe import dump_recipe
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.stages import bench, verify
from trt_layermerge.session.built import engine_hashes
from trt_layermerge.session.deployed import CALIBRATION

if TYPE_CHECKING:
    from trt_layermerge.deploy.bundle.contents import Baked, Contents, Target

FOLDER = "deploy"


def _settings(run: Run) -> Json:
    data = run.recipe.data
    return {
        "run": run.folder.root.name,
        "recipe": dump_recipe(run.recipe),  # it is part of the bundle
        "images": [data_inputs(each, data.classes) for each in (data.val, data.train)],
        "engines": engine_hashes(run.folder.root),
    }


def _run(run: Run) -> tuple[str, ...]:
    from trt_layermerge.deploy.bundle.folder import write_bundle
    from trt_layermerge.deploy.bundle.rebuild import summary
    from trt_layermerge.deploy.bundle.render import render

    targets = run.recipe.package.targets
    if not targets:
        raise UsageError(
            "nothing says what the bundle is for; type --for plain, triton, deepstream or "
            "isaac-ros, or name package.targets in the recipe"
        )
    refuse_bundles(run)
    for stage in (bench.STAGE, verify.STAGE):  # what fails a gate is not bundled
        stage.gate(run)
    made: dict[Baked, Contents] = {}
    rows, written = [], []
    classifies = list(run.session.outputs.values()) == ["classes"] and all(
        answer.ndim == 2 for answer in run.session.answers.values()
    )
    for target in targets:
        baked = baked_for(target, run.recipe.package.bake_preprocess, classifies=classifies)
        if baked not in made:
            made[baked] = contents_of(run, baked)
        files = render(made[baked], target)
        folder = run.folder / FOLDER / target
        write_bundle(folder, files)
        _tell(run, target, made[baked])
        rows.append(summary(folder, target, made[baked]))
        written += [f"{FOLDER}/{target}/{name}" for name in files]
    write_json(run.folder / "package.json", "package", {"bundles": rows})
    return "package.json", *written


def baked_for(target: Target, wanted: bool | None, *, classifies: bool) -> Baked:
    """Returns what of the work around the network goes into the graph of a bundle.

    Only classifiers get a softmax. DeepStream has it in any case, since it takes what they give for
    probabilities, and normalisation unless it was declined.
    """
    from trt_layermerge.deploy.bundle.contents import Baked

    if target == "deepstream":
        return Baked(normalise=wanted is not False, softmax=classifies)
    return Baked(normalise=bool(wanted), softmax=bool(wanted) and classifies)


def _tell(run: Run, target: Target, contents: Contents) -> None:
    from trt_layermerge.deploy.bundle.rebuild import engine_note

    parts = [f"{target}: {packaged_precision(run)}"]
    if contents.baked.normalise:
        pixels = contents.interface.pixels
        parts.append(f"the graph takes {pixels} from 0 to 255")
    if contents.baked.softmax:
        parts.append("the graph gives probabilities")
    if (note := engine_note(contents, target)) is not None:
        parts.append(note)
    run.reporter.note("; ".join(parts))


def _result(run: Run) -> Json:
    return read_json(run.folder / "package.json", "package")


READS = (
    "model.onnx",
    "merged.safetensors",
    CALIBRATION,
    "build.json",
    "bench.json",
    "verify.json",
)
STAGE = Stage("package", READS, _settings, _run, _result)
