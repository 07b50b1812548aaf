"""Times the exact programme on tables of MobileNetV2's size: 391 entries, every budget at once.

    python tests/bench/bm_chain.py

Latencies follow the multiply-accumulates of each candidate, with 20 % noise; losses are exponential
in the length of the block. Neither has anything special in it that the programme could profit from.
"""

from __future__ import annotations

import time

import numpy as np

from tests.search.graphs import mobilenet_v2
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.search import Option, chain_frontier, enumerate_candidates

SEEDS = range(10)


def options_of(seed: int) -> list[Option]:
    """Returns one option per candidate under the paper's rules."""
    rng = np.random.default_rng(seed)
    options = []
    for c in enumerate_candidates(mobilenet_v2(), "paper"):
        macs = sum(s.macs for s in c.costs if isinstance(s, ConvSpec))
        latency = (0.02 + macs * 1e-8) * rng.uniform(0.8, 1.2)
        loss = 0.0 if c.original else float(rng.exponential(0.02)) * len(c.block)
        options.append(Option(c.block.start - 1, c.block.end - 1, latency, float(np.exp(-loss))))
    return options


def main() -> None:
    """Prints the time of each instance, best of three, and the number of points found."""
    slowest = 0.0
    for seed in SEEDS:
        options = options_of(seed)
        length = max(o.end for o in options)
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            found = chain_frontier(length, options)
            seconds.append(time.perf_counter() - started)
        slowest = max(slowest, min(seconds))
        print(f"seed {seed}: {len(options)} entries, {len(found)} points, {min(seconds):.4f} s")
    print(f"slowest of {len(SEEDS)}: {slowest:.4f} s")


if __name__ == "__main__":
    main()
