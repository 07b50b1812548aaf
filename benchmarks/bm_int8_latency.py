"""What int8 costs on a CPU: Q/DQ as written and in ONNX Runtime's own ways, beside float.

Run as ``python -m benchmarks.bm_int8_latency`` on a quiet machine; some seconds. Both glyph
networks, int8 by the shipped tables, one image at a time, in turns on one core; and how far the two
ways move the outputs where the rest of the graph is float16. Writes
``docs/results/int8-latency.md``.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import onnxruntime

from benchmarks.bm_tolerances import NETWORKS, Outputs, unoptimised
from benchmarks.results import Page, measured_by
from tests.quantize.graphs import glyph_images, glyphs, shipped_ranges
from trt_layermerge.backends.onnxruntime import OnnxRuntimeRunner
from trt_layermerge.core.jsonio import Json
from trt_layermerge.deploy.comparison import infer_all
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.measure.timing import Turns, time_runners
from trt_layermerge.quantize.qdq import quantize_model

ROUNDS, IMAGES = 100, 8


def opened(model: bytes, as_written: bool = True) -> OnnxRuntimeRunner:
    """Returns a model on one thread, its Q/DQ pairs computed as written or as the library likes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", str(int(as_written)))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return OnnxRuntimeRunner(session, 0, time.thread_time_ns)


def moved(outputs: Outputs, reference: Outputs) -> float:
    """Returns the largest difference over the largest output."""
    return float(np.abs(outputs - reference).max() / np.abs(reference).max())


def measured(network: str) -> Json:
    """Returns the figures of a network."""
    fp32 = glyphs(network, batch=1)
    int8 = quantize_model(fp32, shipped_ranges(NETWORKS[network]))
    half = to_precision(int8, "fp16", keep_io=True)
    images = glyph_images("val")[0][:IMAGES]
    with ExitStack() as stack:
        runners = [
            stack.enter_context(opened(*given))
            for given in ((fp32,), (int8,), (int8, False), (half,), (half, False))
        ]
        timings = time_runners(runners[:3], Turns(rounds=ROUNDS))
        reference = unoptimised(half, images)
        written, own = (
            moved(infer_all(runner, images)["logits"], reference) for runner in runners[3:]
        )
    names = ("fp32_ms", "int8_ms", "int8_own_ms")
    return {
        "network": network,
        **{name: timing.ms for name, timing in zip(names, timings, strict=True)},
        "moved": written,
        "moved_own": own,
    }


HEAD = """\
# INT8 on a CPU

{origin}

Milliseconds of one image on one core, {rounds} rounds in turns. *As written*: every Q/DQ pair is \
computed, `session.disable_quant_qdq` is `"1"`. *Own ways*: what ONNX Runtime makes of the pairs \
unless it is told not to. *Moved*: where the rest is float16, the largest difference over the \
largest output from a session that optimises nothing, {images} images of `val`.

| network | fp32 | int8 as written | int8 in own ways | as written, moved | own ways, moved |
|---|---|---|---|---|---|
"""


def line(row: Json) -> str:
    """Returns the line of a network."""
    times = " | ".join(f"{row[name]:.3f}" for name in ("fp32_ms", "int8_ms", "int8_own_ms"))
    return f"| {row['network']} | {times} | {row['moved']:.1%} | {row['moved_own']:.1%} |\n"


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    origin = measured_by("bm_int8_latency", header)
    head = HEAD.format(origin=origin, rounds=header["rounds"], images=header["images"])
    return head + "".join(map(line, rows))


PAGE = Page("int8-latency", text)


def main() -> None:
    """Measures both networks and writes the page."""
    PAGE.record({"rounds": ROUNDS, "images": IMAGES}, [measured(name) for name in NETWORKS])


if __name__ == "__main__":
    main()
