"""``triton``: a model repository with an entry for TensorRT and one for ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from trt_layermerge.deploy.bundle.contents import Contents, Files, NumberType, Port
from trt_layermerge.deploy.bundle.layout import Layout, engine_stem, lines, loadable, onnx_places

REPOSITORY = "models"

TYPES: Mapping[NumberType, str] = {
    "float32": "TYPE_FP32",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}

USAGE = """\
`models/` is a model repository. `{name}` runs the engine, `{name}_onnx` the ONNX model.

```
tritonserver --model-repository=models --model-control-mode=explicit {load}
```

{state} A plan file runs with the very TensorRT version that built it, so build with that of the \
server's container. {batch}
"""


def layout(contents: Contents) -> Layout:
    """Returns the repository ``models`` with ``NAME`` (TensorRT) and ``NAME_onnx``.

    Raises:
        UsageError: If a label does not fit into one line.
    """
    engine, portable = (f"{REPOSITORY}/{contents.name}{end}" for end in ("", "_onnx"))
    stem = _engine_stem(contents)
    model = f"{portable}/1/model.onnx"
    typed = "onnx/model.int8.onnx" if contents.precision == "int8" else model
    places = onnx_places(contents, typed, model)
    places |= {"engine": f"{engine}/1/{stem}.plan", "sidecar": f"{engine}/1/{stem}.json"}
    files: Files = {
        f"{engine}/config.pbtxt": engine_config(contents).encode(),
        f"{portable}/config.pbtxt": onnx_config(contents).encode(),
    }
    if contents.labels is not None:
        files |= {f"{entry}/labels.txt": lines(contents.labels) for entry in (engine, portable)}
    return Layout(places, _usage(contents), files)


def engine_config(contents: Contents) -> str:
    """Returns ``config.pbtxt`` of the engine.

    Where its compute capability is known, the plan belongs to that one: there is no default for
    other GPUs, so that none of them loads a plan that was not built for it.
    """
    capability = _capability(contents)
    more = ""
    if capability is not None:
        pair = f'key: "{capability}" value: "{_engine_stem(contents)}.plan"'
        more = f"cc_model_filenames [ {{ {pair} }} ]\n"
    return _config(contents, contents.name, "tensorrt_plan", more)


def onnx_config(contents: Contents) -> str:
    """Returns ``config.pbtxt`` of the ONNX model."""
    return _config(contents, f"{contents.name}_onnx", "onnxruntime_onnx", "")


def _config(contents: Contents, name: str, platform: str, more: str) -> str:
    """Returns a model configuration in protobuf's text format.

    ``max_batch_size`` 0 makes ``dims`` the full shape: a static batch cannot be put together by the
    server.
    """
    face = contents.interface
    batch = () if face.max_batch else (face.batch,)
    labels = len(contents.labels or ())
    return (
        f"name: {json.dumps(name)}\n"
        f"platform: {json.dumps(platform)}\n"
        f"max_batch_size: {face.max_batch or 0}\n"
        + _tensors("input", face.inputs, batch)
        + _tensors("output", face.outputs, batch, labels)
        + more
        + ("dynamic_batching { }\n" if face.max_batch else "")
    )


def _tensors(kind: str, ports: Sequence[Port], batch: tuple[int, ...], labels: int = 0) -> str:
    """Returns the inputs or outputs; those that are classes are named by the labels."""
    body = ",\n".join(_tensor(port, batch, labels) for port in ports)
    return f"{kind} [\n{body}\n]\n"


def _tensor(port: Port, batch: tuple[int, ...], labels: int) -> str:
    dims = (*batch, *port.shape)
    fields = {
        "name": json.dumps(port.name),
        "data_type": TYPES[port.type],
        "dims": f"[ {', '.join(map(str, dims or (1,)))} ]",
    }
    if not dims:  # one number an image: a request has (N, 1), the network (N,)
        fields["reshape"] = "{ shape: [ ] }"
    if labels and port.kind == "classes" and port.shape == (labels,):
        fields["label_filename"] = json.dumps("labels.txt")
    return "  {\n" + "".join(f"    {key}: {value}\n" for key, value in fields.items()) + "  }"


def _capability(contents: Contents) -> str | None:
    """Returns the compute capability that the server's plan belongs to, where it is known."""
    if contents.engine is None or not loadable(contents):
        return None
    return contents.engine.sidecar.machine.compute_capability


def _engine_stem(contents: Contents) -> str:
    capability = _capability(contents)
    return f"model_cc{capability.replace('.', '')}" if capability else engine_stem(contents)


def _usage(contents: Contents) -> str:
    name, face = contents.name, contents.interface
    if loadable(contents):
        load, state = f"--load-model={name} --load-model={name}_onnx", "Both are ready."
    else:
        load = f"--load-model={name}_onnx"
        state = (
            f"`{name}` has no engine that Triton can load yet: on the server's machine type "
            "`trt-layermerge rebuild . --backend tensorrt`, and then load it too."
        )
    batch = (
        f"Requests hold up to {face.max_batch} images, and the server joins them."
        if face.max_batch
        else f"The batch is fixed: every request has the full shape, {face.batch} first."
    )
    return USAGE.format(name=name, load=load, state=state, batch=batch)
