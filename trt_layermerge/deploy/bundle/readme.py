"""``README.md`` of a bundle: what it is, how to check it, how to use it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping

from trt_layermerge.deploy.bundle.contents import Contents, Engine, Target

SERVERS: Mapping[Target, str] = {
    "plain": "programs that call TensorRT or ONNX Runtime themselves",
    "triton": "Triton Inference Server",
    "deepstream": "DeepStream",
    "isaac-ros": "Isaac ROS",
}

TEMPLATE = """\
# {name}, {precision}, for {server}

A network made shallower by trt-layermerge: `recipe.yaml` tells how, `manifest.json` all the rest.

| | |
|---|---|
{ports}
| engine | {engine} |
| accuracy | {accuracy} |
| latency | {latency} |

## Check it

```
python3 verify.py
```

needs numpy, and TensorRT with a GPU or ONNX Runtime.
It compares the hash of every file with `manifest.json`, runs what can be run here on two inputs
({samples}) and compares the outputs with those in `expected.npz`. It ends with 0 if all is well,
4 if nothing can be run here, 5 if an output is wrong and 7 if a file was changed.
`--require-engine` makes an engine that cannot be run a failure, `--time` shows a quick latency.
The hashes protect against mixed-up and damaged files, not against somebody who writes a manifest
to go with other files: an engine is code, so take bundles from people you trust.

## Build the engine again

```
trt-layermerge rebuild .
```

on the machine that will run it. An engine belongs to one GPU and one version of TensorRT;
`{onnx}` and `recipe.yaml` are what is shipped, the engine is a cache.

## One prediction

{prediction}

## Use it

{usage}"""

PREDICTION = """\
```python
import numpy as np
import onnxruntime
from PIL import Image
photo = Image.open("photo.jpg").convert("{mode}").resize(({width}, {height}))
pixels = np.asarray(photo, np.float32).reshape({height}, {width}, {channels})
x = {x}
images = np.repeat(x.transpose(2, 0, 1)[None], {batch}, 0).astype(np.float32)
network = onnxruntime.InferenceSession("{onnx}")
answers = [values[0] for values in network.run({outputs}, {{"{input}": images}})]
print({told})
```"""

UNTRIED = """
This form follows the server's documentation. The server itself has not loaded it.
"""


def readme(contents: Contents, target: Target, places: Mapping[str, str], usage: str) -> str:
    """Returns the text; the same contents give the same text.

    Args:
        contents: What is bundled.
        target: For what.
        places: Path of every part by its role.
        usage: How the target uses the bundle, in Markdown.
    """
    end = "" if target == "plain" else UNTRIED
    text = TEMPLATE.format(
        name=contents.name,
        precision=contents.precision,
        server=SERVERS[target],
        ports="\n".join(_ports(contents)),
        engine=_engine(contents.engine) or f"none: {contents.why_no_engine}",
        accuracy=_accuracy(contents),
        latency=_latency(contents),
        samples=contents.samples.source,
        onnx=places["onnx"],
        prediction=_prediction(contents, places["onnxruntime"], target == "plain"),
        usage=usage,
    )
    return "\n\n".join(_wrapped(block) for block in (text + end).split("\n\n")) + "\n"


def _prediction(contents: Contents, onnx: str, named: bool) -> str:
    """Returns a program that looks at a photograph; what takes more than one is not shown how."""
    face, p = contents.interface, contents.preprocess
    channels, height, width = face.image
    if channels not in (1, 3) or face.inputs[1:]:
        return "`expected.npz` holds two inputs with the outputs that belong to them."
    steps = f"(pixels * {p.scale:.9g} - {list(p.mean)}) / {list(p.std)}"
    best = "answers[0].argmax()"
    if named and contents.labels is not None:
        best = f'open("labels.txt").read().splitlines()[{best}]'
    return PREDICTION.format(
        mode="RGB" if channels == 3 else "L",
        width=width,
        height=height,
        channels=channels,
        x="pixels" if contents.baked.normalise else steps,
        batch=face.batch,
        onnx=onnx,
        input=face.inputs[0].name,
        outputs=json.dumps([port.name for port in face.outputs]),
        told=f"{best}, answers[0].max()" if face.classifies else "answers",
    )


def _wrapped(block: str) -> str:
    """Returns a paragraph in lines of at most 100 signs; tables, code and titles as they are."""
    if block.lstrip("\n").startswith(("|", "`" * 3, "#")):
        return block
    return textwrap.fill(block, 100, break_long_words=False, break_on_hyphens=False)


MEANINGS: Mapping[str, str] = {
    "numbers": "numbers",
    "classes": "logits",
    "labels": "a logit for each label",
    "indices": "whole numbers",
    "probabilities": "probabilities",
    "values": "numbers",
}
"""What a tensor is by its kind; the image has a meaning of its own."""


def _ports(contents: Contents) -> Iterator[str]:
    """Yields a row of the table for every input and output."""
    face = contents.interface
    batch = f"1 to {face.max_batch}" if face.max_batch else str(face.batch)
    for role, ports in (("input", face.inputs), ("output", face.outputs)):
        for port in ports:
            if port.kind == "image":
                meaning = _image_meaning(contents)
            elif role == "output" and contents.baked.softmax:
                meaning = "probabilities"
            else:
                meaning = MEANINGS[port.kind]
            shape = ", ".join(map(str, (batch, *port.shape)))
            yield f"| {role} | `{port.name}`, {port.type}, ({shape}): {meaning} |"


def _image_meaning(contents: Contents) -> str:
    image = contents.interface.pixels
    if contents.baked.normalise:
        return f"{image} from 0 to 255; the graph normalises"
    p = contents.preprocess
    return f"{image}, (x · {p.scale:.9g} − {list(p.mean)}) / {list(p.std)}"


def _engine(engine: Engine | None) -> str | None:
    if engine is None:
        return None
    sidecar = engine.sidecar
    gpu = sidecar.machine.gpu or "no GPU in particular"
    return f"{sidecar.library} {sidecar.library_version}, for {gpu}"


def _accuracy(contents: Contents) -> str:
    found = contents.accuracy
    if not {"original", contents.precision} <= found.keys():
        return f"not measured at {contents.precision}"
    return (
        f"{found[contents.precision]:.2%} on the test images, at {contents.precision} in ONNX "
        f"Runtime; the original has {found['original']:.2%} in torch"
    )


def _latency(contents: Contents) -> str:
    found = contents.latency.get(contents.precision)
    if found is None:
        return f"not measured at {contents.precision}"
    text = (
        f"{found['merged_ms']:.4g} ms, {found['speedup']:.2f} times as fast as the original, at "
        f"{contents.precision} on {found['device']}"
    )
    return text + "; without what was baked into this graph" if contents.baked else text
