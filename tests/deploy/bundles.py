"""A small classifier without torch, as the contents of a bundle."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.export.free import free_batch
from trt_layermerge.backends.tensorrt import EngineBuild
from trt_layermerge.core.jsonio import sha256_bytes, sha256_json
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.deploy.bundle.contents import Baked, Contents, Engine, Interface, Port, Samples
from trt_layermerge.deploy.machine import Machine
from trt_layermerge.deploy.sidecar import Origin, describe
from trt_layermerge.export.bake import bake
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.export.graph import rename

IMAGENET = Preprocess()
UNIFORM = Preprocess(1 / 255, (0.5, 0.4, 0.3), (0.25, 0.25, 0.25))
ORIN = Machine("Orin (nvgpu)", "8.7", "12.6", "L4T 36.4.3", "25W")
LABELS = ("tench", "great white shark", "hen")
PLAN = b"an engine"


def network(batch=1, seed=0):
    """Returns ONNX: convolution, ReLU, global average, linear; 3x8x6 to three classes."""
    rng = np.random.default_rng(seed)
    constants = {
        "w": rng.normal(0, 0.3, (4, 3, 3, 3)),
        "b": rng.normal(0, 0.3, 4),
        "v": rng.normal(0, 1, (3, 4)),
        "c": rng.normal(0, 1, 3),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("GlobalAveragePool", ["z"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (batch, 3, 8, 6))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, 3))],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString(deterministic=True)


def run(model, images):
    """Returns what ONNX Runtime makes of images, one run for each."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


def pixels(seed=1):
    """Returns two images ``(2, 8, 6, 3)`` uint8."""
    return np.random.default_rng(seed).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)


def contents(*, precision="fp16", max_batch=None, normalise=False, softmax=False, **changes):
    """Returns a bundle's contents, without an engine."""
    preprocess = changes.get("preprocess", IMAGENET)
    baked = Baked(normalise, softmax)
    fp32 = network()
    models = {}
    for name in ("fp32", "fp16"):
        typed = to_precision(fp32, name, keep_io=True)
        models[name] = bake(typed, preprocess if normalise else None, softmax=softmax)
    raw = pixels().transpose(0, 3, 1, 2).astype(np.float32)
    inputs = raw if normalise else preprocess(pixels())
    outputs = {name: (run(model, inputs),) for name, model in models.items()}
    if max_batch:
        models = {name: free_batch(model) for name, model in models.items()}
    output = Port("prob" if softmax else "logits", (3,), "classes")
    face = Interface((Port("input", (3, 8, 6), "image"),), (output,), 1, max_batch)
    values = {
        "name": "net",
        "precision": precision,
        "models": models,
        "portable": None,
        "engine": None,
        "why_no_engine": "nobody built one",
        "interface": face,
        "baked": baked,
        "preprocess": preprocess,
        "labels": LABELS,
        "samples": Samples((inputs,), outputs, "two made-up images"),
        "recipe": "seed: 7\n",
        "build": {"engine": "auto", "tf32": False},
        "weights_sha256": "b" * 64,
        "seed": 7,
        "accuracy": {"original": 0.9, "fp32": 0.88, "fp16": 0.87},
    }
    return Contents(**{**values, **changes})


def several(**changes):
    """Returns contents of a network that takes an image and two numbers, and gives three tensors.

    ``map`` is what a convolution gives, plus the first number; ``kind`` are logits of three
    classes, and ``best`` the place of the largest.
    """
    max_batch = changes.pop("max_batch", None)
    ports = (
        (Port("image", (3, 8, 6), "image"), Port("numbers", (2,), "numbers", "int64")),
        (
            Port("map", (4, 8, 6), "values"),
            Port("kind", (3,), "classes"),
            Port("best", (), "indices", "int64"),
        ),
    )
    parsed = onnx.load_from_string(network())
    graph = parsed.graph
    nodes = [
        helper.make_node("Cast", ["numbers"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["floats", "first"], ["one"], axis=1),
        helper.make_node("Unsqueeze", ["one", "axes"], ["wide"]),
        helper.make_node("Add", ["z", "wide"], ["map"]),
        helper.make_node("ArgMax", ["kind"], ["best"], axis=1, keepdims=0),
    ]
    rename(graph, "input", "image")
    rename(graph, "logits", "kind")
    graph.node.extend(nodes)
    for name, value in (("first", [0]), ("axes", [2, 3])):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
    del graph.input[:], graph.output[:]
    for values, side in zip((graph.input, graph.output), ports, strict=True):
        for port in side:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(port.type))
            values.append(helper.make_tensor_value_info(port.name, kind, (1, *port.shape)))
    model = parsed.SerializeToString(deterministic=True)
    inputs = (IMAGENET(pixels()), np.array([[3, 1], [-2, 5]]))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows = [
        session.run(None, {"image": inputs[0][i : i + 1], "numbers": inputs[1][i : i + 1]})
        for i in range(2)
    ]
    outputs = tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))
    given = {
        "precision": "fp32",
        "models": {"fp32": free_batch(model) if max_batch else model},
        "interface": Interface(*ports, 1, max_batch),
        "samples": Samples(inputs, {"fp32": outputs}, "two made-up images"),
    }
    return contents(**{**given, **changes})


def with_plan(given, *, library="tensorrt", machine=ORIN, plan=PLAN, **settings):
    """Returns the contents with an engine that nobody can load."""
    build = EngineBuild(
        plan=plan,
        seconds=1.5,
        library=library,
        version="10.3.0",
        log=(),
        precision=given.precision,
        inputs={"input": (1, 3, 8, 6)},
        outputs={"logits": (1, 3)},
        settings=settings,
    )
    origin = Origin(
        sha256_bytes(given.models[given.precision]),
        given.weights_sha256,
        given.preprocess.to_json(),
        given.labels,
        given.recipe,
        given.seed,
    )
    engine = Engine(plan, describe(build, origin, machine))
    return replace(given, engine=engine, why_no_engine=None)


def signed(body):
    """Returns the text of a manifest with its hash, as somebody writes who means to."""
    body.pop("sha256", None)
    return json.dumps({**body, "sha256": sha256_json(body)})


def change_manifest(bundle, change):
    """Changes the body of a manifest, and its hash with it."""
    body = json.loads((bundle / "manifest.json").read_text())
    change(body)
    (bundle / "manifest.json").write_text(signed(body))
