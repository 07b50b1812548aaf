"""Time and memory of MobileNetV2's calibrate table at 224: the 391 entries of the paper.

Run as ``python -m tests.bench.bm_importance`` on a quiet machine; about a quarter of an hour. The
weights are random, since only time and memory are looked at. Goal: 20 minutes and 24 GB or less
on two cores, with 256 images to fit on and as many to score on.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from itertools import pairwise

import torch
import torchvision

from trt_layermerge.backends.host import cpu_name
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.search import enumerate_candidates
from trt_layermerge.trace import trace

SEED = 0


def main() -> None:
    """Scores every entry, or evenly chosen ones, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="to fit on, and to score on")
    parser.add_argument("--every", type=int, default=1, help="score every n-th entry only")
    wanted = parser.parse_args()
    torch.manual_seed(SEED)
    model = torchvision.models.mobilenet_v2(weights=None).eval()
    images = torch.randn(2 * wanted.images, 3, 224, 224)
    graph = trace(model, images[:1])
    candidates = enumerate_candidates(graph, "paper")[:: wanted.every]

    started = time.perf_counter()
    scorer = CalibrateScorer(
        model, graph, images[: wanted.images], images[wanted.images :], seed=SEED
    )
    times = [time.perf_counter() - started]
    for candidate in candidates:
        scorer.entry(candidate)
        times.append(time.perf_counter() - started)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(candidates)} entries, {wanted.images} + {wanted.images} images, seed {SEED}: set up "
        f"{times[0]:.1f} s, all {times[-1]:.0f} s, slowest entry "
        f"{max(after - before for before, after in pairwise(times)):.1f} s, "
        f"{peak_gib:.1f} GiB; {cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"threads, load average {os.getloadavg()[0]:.2f}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
