"""What half precision does to networks, by rounding after every operation, and what stays in float.

Run as ``python -m benchmarks.bm_half``; minutes on one core. A sample of the zoo with random
weights on noise, both glyph networks on images, and three networks that float16 cannot hold.
Writes ``docs/results/half-precision.md``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper

from benchmarks.networks import NETWORKS
from benchmarks.results import Page, measured_by
from tests.quantize.graphs import glyph_images, glyphs, network
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import LayerMergeError
from trt_layermerge.export.fp16 import beyond_half, kept_in_float, rounded, to_precision
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.export.runtime import logits, magnitudes

SAMPLE = (
    "timm:resnet18",
    "timm:mobilenetv3_small_050",
    "timm:lcnet_050",
    "timm:regnetx_002",
    "timm:repghostnet_050",
    "timm:starnet_s050",
    "timm:legacy_seresnet18",
    "torchvision:mobilenet_v2",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1",
)
SIZE, IMAGES = 64, 4

Images = NDArray[np.float32]


def cases() -> Iterator[tuple[str, bytes, Images]]:
    """Yields networks by name, as float32 ONNX, with images."""
    noise = np.random.default_rng(0).standard_normal((IMAGES, 3, SIZE, SIZE), np.float32)
    for found in NETWORKS:
        if found.name in SAMPLE:
            torch.manual_seed(0)
            yield found.name, export_bytes(found.make().eval(), torch.from_numpy(noise)), noise
    for name in ("resnet20", "mobilenet_v2"):
        images = glyph_images("val")[0][:64]
        yield f"glyphs {name}", glyphs(name, batch=len(images)), images
    yield from made()


def made() -> Iterator[tuple[str, bytes, Images]]:
    """Yields networks that overflow, underflow and divide by an ``eps`` below float16."""
    twenty = np.full((1, 2, 4, 4), 20, np.float32)
    convs = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "v"], ["y"], "second"),
    ]
    for name, first, second in (("overflows", 3e3, 1e-3), ("underflows", 1e-8, 1e8)):
        weights = {"w": np.full((2, 2, 1, 1), first), "v": np.full((2, 2, 1, 1), second)}
        yield f"made: {name}", _shaped(network(convs, twenty.shape, weights)), twenty
    divide = [
        helper.make_node("Add", ["x", "eps"], ["n"], "add"),
        helper.make_node("Div", ["x", "n"], ["y"], "divide"),
    ]
    yield "made: eps 1e-12", _shaped(network(divide, twenty.shape, {"eps": 1e-12})), 0 * twenty


def _shaped(model: bytes) -> bytes:
    return bytes(
        onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).SerializeToString()
    )


def measured(name: str, master: bytes, images: Images) -> Json:
    """Returns the row of a network."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(master)).graph
    floats = {
        v.name for v in (*graph.value_info, *graph.output) if v.type.tensor_type.elem_type == 1
    }
    values = [value for node in graph.node for value in node.output if value in floats]
    told = beyond_half(master, [images])
    return {
        "network": name,
        "largest": max(magnitudes(master, [images], values).values()),
        "kept": kept_in_float(onnx.load_from_string(told)),
        "all_half": error_of(master, master, images),
        "error": error_of(told, master, images),
    }


def error_of(model: bytes, master: bytes, images: Images) -> float | str:
    """Returns the largest difference over the largest output, or why there is no such network."""
    expected = logits(master, images)
    try:
        half = rounded(to_precision(model, "fp16", keep_io=True))
    except LayerMergeError as error:
        return f"refused: {error}"
    found = logits(half, images)
    if not np.isfinite(found).all():
        return "not finite"
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


HEAD = """\
# Half precision

{origin}

The largest value that any operation gives on the images; what is kept in float for it (values \
within a factor of two of 65504, or below 2⁻¹⁴ throughout, with the layers at them); and the \
largest difference from float32 over the largest output, where every result is rounded to float16: \
with all in half precision, and as it is exported. The zoo has random weights and gets noise of \
{size}x{size} pixels ({images} images), the glyph networks are trained and get 64 images of `val`.

| network | largest value | kept in float | error, all in half | error, as exported |
|---|---:|---|---:|---:|
"""


def line(row: Json) -> str:
    """Returns the line of a network."""
    kept = ", ".join(f"`{name}`" for name in row["kept"][:6]) or "nothing"
    more = len(row["kept"]) - 6
    errors = [e if isinstance(e, str) else f"{e:.2g}" for e in (row["all_half"], row["error"])]
    kept += f" and {more} more" if more > 0 else ""
    return f"| {row['network']} | {row['largest']:.3g} | {kept} | {' | '.join(errors)} |\n"


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    origin = measured_by("bm_half", header)
    return HEAD.format(origin=origin, size=SIZE, images=IMAGES) + "".join(map(line, rows))


PAGE = Page("half-precision", text)


def main() -> None:
    """Looks at every network and writes the page."""
    rows = []
    for case in cases():
        rows.append(measured(*case))
        print(line(rows[-1]), end="", flush=True)
    PAGE.record({}, rows)


if __name__ == "__main__":
    main()
