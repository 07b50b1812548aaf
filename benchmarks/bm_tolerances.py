"""How far apart two right computations of one network are, and two that are not.

Run as ``python -m benchmarks.bm_tolerances``; half a minute on one core. The limits of a bundle's
``verify.py`` (``deploy.bundle.contents.TOLERANCES``) and what ``docs/deploying.md`` says of them
come from here: both glyph networks, int8 by the shipped tables, images of ``val`` in pairs as a
bundle has them. Writes ``docs/results/tolerances.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Page, measured_by
from tests.quantize.graphs import glyph_images, glyphs, run, shipped_ranges
from trt_layermerge.backends import get_backend
from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json
from trt_layermerge.deploy.bundle.contents import TOLERANCES
from trt_layermerge.deploy.comparison import infer_all
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.quantize.qdq import quantize_model

NETWORKS = {"resnet20": "resnet20", "mobilenet_v2": "mobilenetv2"}
Outputs = NDArray[np.float32]

FAULTS: dict[str, Callable[[Outputs], Outputs]] = {
    "red and blue swapped": lambda images: images[:, ::-1].copy(),
    "half the contrast": lambda images: images * np.float32(0.5),
    "shifted by a pixel": lambda images: np.roll(images, 1, axis=-1),
}


def as_deployed(model: bytes, images: Outputs) -> Outputs:
    """Returns outputs as ``package`` computes those that it expects."""
    with get_backend("onnxruntime").open(model) as runner:
        (outputs,) = infer_all(runner, images).values()
    return outputs


def unoptimised(model: bytes, images: Outputs) -> Outputs:
    """Returns outputs of a session that leaves the graph alone: sums are in another order."""
    outputs: Outputs = np.concatenate([run(model, image[None])[0] for image in images])
    return outputs


def softmax(logits: Outputs) -> Outputs:
    """Returns probabilities."""
    powers: Outputs = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: Outputs = powers / powers.sum(1, keepdims=True)
    return probabilities


def by_pairs(found: Outputs, expected: Outputs) -> NDArray[np.float64]:
    """Returns the largest difference over the largest expected output of every two images."""
    pairs = [slice(start, start + 2) for start in range(0, len(found), 2)]
    return np.array(
        [np.abs(found[p] - expected[p]).max() / np.abs(expected[p]).max() for p in pairs]
    )


def comparisons(network: str) -> Iterator[tuple[str, Precision, NDArray[np.float64]]]:
    """Yields what was compared, the precision, and the differences of all pairs."""
    images = glyph_images("val")[0]
    fp32 = glyphs(network, batch=1)
    int8 = quantize_model(fp32, shipped_ranges(NETWORKS[network]))
    half = to_precision(fp32, "fp16", keep_io=True)
    models: dict[Precision, bytes] = {"fp32": fp32, "fp16": half, "int8": int8}
    for precision, model in models.items():
        expected = as_deployed(model, images)
        yield "order of summation", precision, by_pairs(unoptimised(model, images), expected)
        if precision == "fp16":
            yield "half beside single", "fp16", by_pairs(expected, as_deployed(fp32, images))
        if precision == "int8":
            typed = to_precision(int8, "fp16", keep_io=True)
            found = as_deployed(typed, images)
            yield "remainder in fp16", "int8", by_pairs(found, expected)
            probabilities = by_pairs(softmax(found), softmax(expected))
            yield "the same behind a softmax", "int8", probabilities
        for fault, spoil in FAULTS.items():
            yield fault, precision, by_pairs(as_deployed(model, spoil(images)), expected)


def measured(network: str) -> Iterator[Json]:
    """Yields a row for every comparison of a network."""
    for what, precision, found in comparisons(network):
        limit = TOLERANCES[precision]
        yield {
            "network": network,
            "precision": precision,
            "what": what,
            "median": float(np.median(found)),
            "largest": float(found.max()),
            "limit": limit,
            "beyond": int((found > limit).sum()),
            "pairs": len(found),
        }


HEAD = """\
# Limits of `verify.py`

{origin}

The largest difference over the largest expected output, of pairs of images of `val`: between
computations that are both right, and with inputs that are wrong. `half beside single` and
`remainder in fp16` compare two graphs, everything else one with itself, all in ONNX Runtime.

| network | precision | what differs | median | largest | limit | beyond it |
|---|---|---|---|---|---|---|
"""


def line(row: Json) -> str:
    """Returns the line of a comparison."""
    return (
        f"| {row['network']} | {row['precision']} | {row['what']} | {row['median']:.2g} "
        f"| {row['largest']:.2g} | {row['limit']:g} | {row['beyond']} of {row['pairs']} |\n"
    )


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    origin = measured_by("bm_tolerances", header)
    return HEAD.format(origin=origin) + "".join(map(line, rows))


PAGE = Page("tolerances", text)


def main() -> None:
    """Compares everything and writes the page."""
    PAGE.record({}, [row for network in NETWORKS for row in measured(network)])


if __name__ == "__main__":
    main()
