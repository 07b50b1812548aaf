"""``deepstream``: a configuration of ``nvinfer``, for whole frames.

It knows what classifiers give; of every other network it hands on the tensors as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trt_layermerge.core.device import Precision
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.deploy.bundle.contents import Baked, Contents
from trt_layermerge.deploy.bundle.layout import (
    Layout,
    flat_places,
    loadable,
    refuse_within,
)
from trt_layermerge.errors import UsageError

NETWORK_MODES: Mapping[Precision, int] = {"fp32": 0, "int8": 1, "fp16": 2}
COLOUR_FORMATS = {3: 0, 1: 2}
"""``nvinfer``'s number for RGB and for grey, by channels."""
CLASSIFIER, OTHER = 1, 100
WHOLE_FRAMES = 1

USAGE = """\
`config_infer.txt` is for the element `nvinfer` (`config-file-path=config_infer.txt`); paths in it
are relative to its folder. It {does} whole frames; for objects that a detector found, set
`process-mode=2` and `operate-on-gie-id`. {where}

{state}
"""


def layout(contents: Contents) -> Layout:
    """Returns ``config_infer.txt``, ``model.onnx``, ``model.plan`` and ``labels.txt``.

    Raises:
        UsageError: If ``nvinfer`` cannot do what the network expects (``nvinfer_scaling``), a
            classifier gives logits, there are several inputs, or a label holds a semicolon.
    """
    files = {"config_infer.txt": config(contents).encode()}
    if contents.labels is not None:
        files["labels.txt"] = one_line(contents.labels)
    return Layout(flat_places(contents), _usage(contents), files)


def config(contents: Contents) -> str:
    """Returns ``config_infer.txt``. Raises as ``layout`` does."""
    face = contents.interface
    if face.image[0] not in COLOUR_FORMATS:
        raise UsageError(
            f"DeepStream gives networks RGB or grey images, but this one takes {face.image[0]} "
            "channels; package it for another target (--for plain or triton)"
        )
    refuse_inputs(face.inputs)
    if face.classifies and not contents.baked.softmax:
        raise UsageError(
            "nvinfer takes what a classifier gives for probabilities, and these are logits; "
            "package with the softmax in the graph (--bake-preprocess)"
        )
    factor, offsets = nvinfer_scaling(contents.preprocess, contents.baked)
    values: dict[str, object] = {"gpu-id": 0, "onnx-file": "model.onnx"}
    if loadable(contents):
        values["model-engine-file"] = "model.plan"
    if contents.labels is not None:
        values["labelfile-path"] = "labels.txt"
    values |= {
        "batch-size": face.limit,
        "network-mode": NETWORK_MODES[contents.precision],
        "network-type": CLASSIFIER if face.classifies else OTHER,
        "process-mode": WHOLE_FRAMES,
        "infer-dims": ";".join(map(str, face.image)),
        "model-color-format": COLOUR_FORMATS[face.image[0]],
        "maintain-aspect-ratio": 0,
        "net-scale-factor": repr(factor),
        "offsets": ";".join(map(repr, offsets)),
        **({"classifier-threshold": 0.2} if face.classifies else {"output-tensor-meta": 1}),
        "output-blob-names": ";".join(port.name for port in face.outputs),
        "gie-unique-id": 1,
    }
    return "[property]\n" + "".join(f"{key}={value}\n" for key, value in values.items())


def refuse_inputs(inputs: Sequence[object]) -> None:
    """Refuses a network that takes more than the frame. Raises ``UsageError``."""
    if len(inputs) > 1:
        raise UsageError(
            f"nvinfer gives networks a frame and nothing else, and this one takes {len(inputs)} "
            "inputs; leave deepstream out of package.targets (--for plain, triton or isaac-ros)"
        )


def nvinfer_scaling(preprocess: Preprocess, baked: Baked) -> tuple[float, tuple[float, ...]]:
    """Returns ``net-scale-factor`` and ``offsets`` of ``y = net-scale-factor · (x − offset)``.

    With normalisation in the graph ``nvinfer`` hands the pixels on: 1 and zeros. Else
    ``y = (x · scale − mean) / std`` needs the factor ``scale / std`` and the offsets
    ``mean / scale``, and there is one factor for all channels.

    Raises:
        UsageError: If ``std`` differs between channels, and normalisation is not in the graph.
    """
    if baked.normalise:
        return 1.0, (0.0,) * len(preprocess.mean)
    if len(set(preprocess.std)) > 1:
        raise UsageError(
            f"nvinfer has one factor for all channels, and std is {preprocess.std}: the "
            "normalisation must be part of the network; leave out --no-bake-preprocess"
        )
    return preprocess.scale / preprocess.std[0], tuple(
        m / preprocess.scale for m in preprocess.mean
    )


def one_line(labels: Sequence[str]) -> bytes:
    """Returns the labels of one classifier: one line, separated by semicolons.

    Raises:
        UsageError: If a label holds a semicolon or a line end.
    """
    refuse_within(labels, ";", "\n", "\r")
    return ";".join(labels).encode() + b"\n"


def _usage(contents: Contents) -> str:
    where = (
        "The graph normalises: `nvinfer` hands pixels on as they are."
        if contents.baked.normalise
        else "`nvinfer` normalises."
    )
    classifies = contents.interface.classifies
    if classifies:
        where += " The graph ends in a softmax."
    else:
        where += (
            " What the network puts out is not interpreted: every frame gets its tensors, in the "
            "order of `output-blob-names`, as `NvDsInferTensorMeta` (`output-tensor-meta`), for a "
            "probe of yours to read."
        )
    if loadable(contents):
        state = "`nvinfer` loads `model.plan`, and builds its own engine where that does not fit."
    else:
        state = (
            "There is no engine that DeepStream can load yet: on the device type "
            "`trt-layermerge rebuild . --backend tensorrt`. Without, `nvinfer` builds its own."
        )
    if contents.precision == "int8":
        state += (
            " It must not build this one: without a calibration table, which a network with its "
            "own scales does not need, `nvinfer` falls back to fp16. Always rebuild."
        )
    return USAGE.format(does="classifies" if classifies else "sees", where=where, state=state)
