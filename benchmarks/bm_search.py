"""Time and memory of a whole search: MobileNetV2 at 224, the 391 entries of the paper's rules.

Run as ``python -m benchmarks.bm_search`` on an idle machine; about seven minutes. The
weights are random, since only time and memory are looked at. Stages: candidates, the latency of
every block on ONNX Runtime, their importance by ``calibrate``, and the frontier of all budgets.
Goal: 20 minutes and 24 GB for importance on two cores, 256 images to fit on and as many to score
on. Writes ``docs/results/search-time.md``, unless only some entries are scored.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torchvision
from torch import nn

from benchmarks.bm_predict import measure_table
from benchmarks.results import Page, measured_by
from trt_layermerge.backends import get_backend
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.search import frontier
from trt_layermerge.tracing import trace

SEED, SIZE = 0, 224
GOAL_S, GOAL_GB = 1200, 24


@contextmanager
def timed(rows: list[Json], stage: str) -> Iterator[None]:
    """Adds a row with the seconds of a stage."""
    started = time.perf_counter()
    yield
    rows.append({"stage": stage, "seconds": time.perf_counter() - started})


def scored(
    model: nn.Module, graph: LayerGraph, candidates: list[Candidate], images: int, rows: list[Json]
) -> ImportanceTable:
    """Returns the importance of candidates; adds a row for each, and one for the preparation."""
    drawn = torch.randn(2 * images, 3, SIZE, SIZE)
    with timed(rows, "prepare"):
        scorer = CalibrateScorer(model, graph, drawn[:images], drawn[images:], seed=SEED)
    entries = {}
    for number, candidate in enumerate(candidates):
        started = time.perf_counter()
        entries[candidate.key] = scorer.entry(candidate)
        seconds = time.perf_counter() - started
        rows.append({"entry": str(candidate), "kind": candidate.kind, "seconds": seconds})
        if number % 20 == 0:
            print(f"  {number} of {len(candidates)}: {candidate} {seconds:.1f} s", flush=True)
    return ImportanceTable(entries, scorer.notes)


def search(images: int, every: int) -> list[Json]:
    """Returns the seconds of every stage and entry."""
    torch.manual_seed(SEED)
    model = torchvision.models.mobilenet_v2(weights=None).eval()
    rows: list[Json] = []
    with timed(rows, "trace and enumerate"):
        graph = trace(model, torch.randn(1, 3, SIZE, SIZE))
        candidates = [*enumerate_candidates(graph, "paper")]
    with timed(rows, "latency"):
        table, _ = measure_table(graph, candidates, get_backend("onnxruntime"), "fp32")
    with timed(rows, "importance"):
        importance = scored(model, graph, candidates[::every], images, rows)
    with timed(rows, "frontier"):
        frontier(graph, candidates[::every], table, importance)
    return rows


def page(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    stages = {row["stage"]: row["seconds"] for row in rows if "stage" in row}
    entries = sorted(row["seconds"] for row in rows if "entry" in row)
    took, used = stages["importance"], header["peak_gib"]
    reached = "reached" if took <= GOAL_S and used * 2**30 <= GOAL_GB * 1e9 else "not reached"
    middle = entries[len(entries) // 2]
    lines = [
        "# The time of a search",
        "",
        measured_by("bm_search", header)
        + f" {header['threads']} threads, seed {SEED}. Figures: `data/search-time.jsonl`.",
        "",
        f"torchvision's MobileNetV2 at {SIZE}x{SIZE} with random weights under the paper's rules: "
        f"{len(entries)} entries scored by `calibrate`, {header['images']} images to fit on and as "
        "many to score on; blocks measured on ONNX Runtime, one thread.",
        "",
        "| stage | seconds |",
        "|---|---|",
        *(f"| {name} | {stages[name]:.2f} |" for name in stages if name != "prepare"),
        f"| all | {sum(s for name, s in stages.items() if name != 'prepare'):.0f} |",
        "",
        f"Importance: {stages['prepare']:.1f} s to record the original's values, then "
        f"{middle:.2f} s an entry in the median, {entries[-1]:.1f} s the slowest. The goal, "
        f"{GOAL_S // 60} minutes and {GOAL_GB} GB for importance on two cores, is {reached}: "
        f"{took / 60:.1f} minutes; the whole process used {used:.1f} GiB at most.",
    ]
    return "\n".join(lines) + "\n"


PAGE = Page("search-time", page)


def main() -> None:
    """Searches, and writes the page where every entry was scored."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="to fit on, and to score on")
    parser.add_argument("--every", type=int, default=1, help="score every n-th entry only")
    wanted = parser.parse_args()
    rows = search(wanted.images, wanted.every)
    header = {
        "images": wanted.images,
        "threads": torch.get_num_threads(),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if wanted.every == 1 and wanted.images == 256:
        PAGE.record(header, rows)
        print(PAGE.path)
        return
    for row in rows:
        if "stage" in row:
            print(f"{row['stage']}: {row['seconds']:.1f} s")
    seconds = [row["seconds"] for row in rows if "entry" in row]
    print(f"{len(seconds)} entries, slowest {max(seconds):.1f} s, {header['peak_gib']:.1f} GiB")


if __name__ == "__main__":
    main()
