"""How long a spec takes to become an ONNX model: every spec of two networks' candidates.

Run as ``python -m tests.bench.bm_spec_model``. Goal: 10 ms or less each.
"""

from __future__ import annotations

import time

from tests.measure.networks import resnet18
from tests.search.graphs import mobilenet_v2
from trt_layermerge.core.conv import Spec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.measure.timing import quantile
from trt_layermerge.search import enumerate_candidates


def build_times(specs: list[Spec]) -> list[tuple[float, int]]:
    """Returns ms (the least of three) and size in bytes of each spec's model."""
    found = []
    for spec in specs:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            model = spec_model(spec, "fp32", 1)
            times.append((time.perf_counter() - start) * 1e3)
        found.append((min(times), len(model)))
    return found


def report(name: str, graph: LayerGraph) -> None:
    """Prints quantiles of the build times of all candidates of a network."""
    specs = list(dict.fromkeys(s for c in enumerate_candidates(graph) for s in c.costs))
    found = build_times(specs)
    times = [ms for ms, _ in found]
    slow = [(ms, size) for ms, size in found if ms > 10]
    print(
        f"{name}: {len(specs)} specs, median {quantile(times, 0.5):.2f} ms, "
        f"p90 {quantile(times, 0.9):.2f} ms, worst {max(times):.1f} ms"
    )
    for ms, size in slow:
        print(f"  over 10 ms: {ms:.1f} ms for {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    report("ResNet-18", resnet18())
    report("MobileNetV2", mobilenet_v2())
