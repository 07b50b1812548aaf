"""Time and memory of a whole search at 224: candidates, latency, importance, and the plan for 1.5x.

Run as ``python -m benchmarks.bm_search --record`` on an idle machine; under an hour. Four networks
under the full rules with all defaults, each in a process of its own, on ONNX Runtime. With
``--weights FILE --images FILE`` EfficientNet-Lite0 has its real weights (safetensors) and real
photographs (``train`` of an npz, uint8 ``(N, 224, 224, 3)``), 1024 of them; the others have random
weights and noise, for time and memory do not depend on what images show. Goal: 10 minutes and 8 GB
each. Prints time and memory of each stage beside the recorded ones, times divided by that of work
that nothing here changes. Writes ``docs/results/search-time.md``; networks that were not named
keep their rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

import trt_layermerge as tlm
from benchmarks.bm_speed import measure
from benchmarks.results import Page, measured_by
from benchmarks.studies.journal import session as this_session
from benchmarks.workloads import REFERENCE
from trt_layermerge.core.jsonio import Json, read_lines
from trt_layermerge.errors import LayerMergeError
from trt_layermerge.session.estimate import Speed, estimate

SEED, SIZE, IMAGES, BATCH, SPEEDUP = 0, 224, 1024, 64, 1.5
GOAL_S, GOAL_GB = 600, 8
NETWORKS = ("mobilenet_v2", "tf_efficientnet_lite0", "resnet50", "efficientnet_b0")
STAGES = ("inspect", "latency", "importance", "search")
BEFORE = {"tf_efficientnet_lite0": 2600}
"""Seconds of importance alone when every candidate was scored on everything (one thread, from every
twelfth candidate)."""


def network(name: str, weights: Path | None) -> nn.Module:
    """Returns a network of torchvision or timm, with random weights where there are no others."""
    torch.manual_seed(SEED)
    if hasattr(torchvision.models, name):
        return torchvision.models.get_model(name, weights=None).eval()
    model = timm.create_model(name)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return model.eval()


def images(path: Path | None) -> list[Tensor]:
    """Returns batches of network inputs ``(N, 3, 224, 224)``: of a file's pixels, or noise."""
    if path is None:
        torch.manual_seed(SEED)
        return [torch.randn(BATCH, 3, SIZE, SIZE) for _ in range(IMAGES // BATCH)]
    pixels = torch.from_numpy(np.load(path)["train"][:IMAGES]).permute(0, 3, 1, 2)
    return [(part.float() / 255 - 0.5) / 0.5 for part in pixels.split(BATCH)]


def search(name: str, weights: Path | None, photographs: Path | None) -> Json:
    """Returns what a search took and came to."""
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    (reference,) = measure([REFERENCE])

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - started
        peaks[stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    model, train = network(name, weights), images(photographs)
    with tempfile.TemporaryDirectory() as folder:
        with timed("inspect"):
            session = tlm.Session(
                model, torch.zeros(1, 3, SIZE, SIZE), folder=folder, settings={"seed": SEED}
            )
            candidates = len(session.candidates)
            speed = Speed.of(session.model, session.example, session.macs)
            parts = session.graph, session.candidates, session.macs
            expected = estimate(*parts, speed, session.settings)
        with timed("latency"):
            session.measure()
        with timed("importance"):
            table = session.score(train)
        missed = None
        with timed("search"):
            try:
                session.search(train, speedup=SPEEDUP)
            except LayerMergeError as error:
                missed = str(error)
        plan = None if missed else session.plan
        return {
            "network": name,
            "real": weights is not None,
            "seconds": seconds,
            "estimated_s": expected.total,
            "candidates": candidates,
            "looked_at": len(table.entries),
            "scored": sum(entry.images is None for entry in table.entries.values()),
            "peak_gb": max(peaks.values()),
            "peaks_gb": peaks,
            "reference_ms": reference["ms"],
            "threads": torch.get_num_threads(),
            "speedup": plan.notes["measured_speedup"] if plan else None,
            "changed": [str(c) for c in plan.changed] if plan else [],
            "missed": missed,
            **this_session(),
        }


def beside(row: Json, before: Json | None) -> str:
    """Returns what a network took, as ratios to what is recorded of it.

    Args:
        row: The new figures.
        before: The recorded ones; None where there are none.
    """
    told = [f"{row['network']}:"]
    for stage in STAGES:
        told.append(f"{stage} {row['seconds'][stage]:.0f} s")
        if before is not None and "reference_ms" in before:
            machine = row["reference_ms"] / before["reference_ms"]
            told[-1] += f" ({row['seconds'][stage] / before['seconds'][stage] / machine:.2f}x)"
    told.append(f"memory {row['peak_gb']:.1f} GB")
    if before is not None:
        told[-1] += f" ({row['peak_gb'] / before['peak_gb']:.2f}x)"
    return " ".join(told)


def page(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    lines = [
        "# The time of a search",
        "",
        measured_by("bm_search", header)
        + f" {rows[0]['threads']} threads, seed {SEED}. Figures: `data/search-time.jsonl`.",
        "",
        f"Networks at {SIZE}x{SIZE} under the full rules, all settings as they are, {IMAGES} "
        "images, measured on ONNX Runtime on one thread; `search` builds and measures whole "
        f"networks until one is {SPEEDUP} times as fast. *Looked at* are candidates that save "
        "latency, *scored* those that the frontier may need (`importance.effort`), on as many "
        f"images as there is time for. *Load* is how many programs wanted a core on average, at "
        f"the end; with more than there are cores, seconds are too many. Goal: {GOAL_S // 60} "
        f"minutes and {GOAL_GB} GB each.",
        "",
        "| network | weights | candidates | looked at | scored | "
        + " | ".join(f"{stage}, s" for stage in STAGES)
        + " | all, min | memory, GB | plan | load | commit |",
        "|" + "---|" * (len(STAGES) + 10),
    ]
    for row in rows:
        took = [row["seconds"][stage] for stage in STAGES]
        plan = "missed" if row["missed"] else f"{row['speedup']:.2f}x"
        weights = "ImageNet" if row["real"] else "random"
        lines.append(
            f"| {row['network']} | {weights} | {row['candidates']} | {row['looked_at']} | "
            f"{row['scored']} | "
            + " | ".join(f"{s:.0f}" for s in took)
            + f" | {sum(took) / 60:.1f} | {row['peak_gb']:.1f} | {plan} "
            + f"| {row['load']:.1f} | {row['commit']} |"
        )
    over = {
        "time": [r["network"] for r in rows if sum(r["seconds"].values()) > GOAL_S],
        "memory": [r["network"] for r in rows if r["peak_gb"] > GOAL_GB],
    }
    late = [f"in {what} by {', '.join(names)}" for what, names in over.items() if names]
    absent = [name for name in NETWORKS if name not in {row["network"] for row in rows}]
    lines += [
        "",
        f"The goal is missed {' and '.join(late)}." if late else "Each of these reaches the goal.",
        *([f"Not measured yet: {', '.join(absent)}."] if absent else []),
        *(f"`{row['network']}`: {row['missed']}." for row in rows if row["missed"]),
        *_estimates(rows),
        *(
            f"Scoring every candidate of {name} in every way on all images took about {before} s "
            "on one thread, reckoned from every twelfth candidate."
            for name, before in BEFORE.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _estimates(rows: list[Json]) -> list[str]:
    """Returns a sentence about what ``inspect`` told before."""
    told = [
        f"{row['network']} {row['estimated_s'] / 60:.1f}" for row in rows if "estimated_s" in row
    ]
    words = "Minutes that `inspect` estimates for latency, importance and search together"
    return [f"{words}: {', '.join(told)}."] if told else []


PAGE = Page("search-time", page)


def main() -> None:
    """Searches each network in a process of its own, and writes the page where it is asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="which networks")
    parser.add_argument("--weights", type=Path, help="of tf_efficientnet_lite0 (safetensors)")
    parser.add_argument("--images", type=Path, help="photographs for it (npz)")
    parser.add_argument("--record", action="store_true", help="write the page")
    parser.add_argument("--one", action="store_true", help="in this process, figures to stdout")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(search(given.networks[0], given.weights, given.images)))
        return
    header, older = read_lines(PAGE.data, PAGE.name)
    made = {name: header[name] for name in this_session()}
    recorded = {row["network"]: {**made, **row} for row in older}
    rows = []
    for name in given.networks:
        own = name == "tf_efficientnet_lite0" and given.weights and given.images
        files = ["--weights", given.weights, "--images", given.images] if own else []
        command = [sys.executable, "-m", "benchmarks.bm_search", "--one", *files, "--", name]
        done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), beside(rows[-1], recorded.get(name)), sep="\n", flush=True)
    if given.record:
        found = recorded | {row["network"]: row for row in rows}
        PAGE.record({}, [found[name] for name in NETWORKS if name in found])
        print(PAGE.path)


if __name__ == "__main__":
    main()
