"""Networks that people bring: which are traced, what is in reach, and that merges are right.

Run as ``python -m benchmarks.bm_coverage --record``; about an hour on two cores. Small networks of
every family of timm that is mostly convolutions, torchvision's classifiers and networks of other
tasks, with seeded weights on one image of 128 pixels (or what the network demands). One of every
family, and those of other tasks, then walk the whole pipeline, all stages on a few images of 64
pixels. Every network has a process of its own, and a run that is interrupted goes on where it was;
with ``--again NAME...`` a new one looks only at these and at what was never recorded. Writes
``docs/results/data/coverage.jsonl`` and ``docs/coverage.md``.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.coverage import reach
from benchmarks.networks import NETWORKS, WALKED, Network
from benchmarks.results import Page, measured_by
from benchmarks.studies.journal import Journal, commit, session
from benchmarks.studies.settings import ROOT
from benchmarks.walk import walk
from tests import nets
from tests.plans import disjoint
from trt_layermerge.backends import get_backend
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json, read_lines
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import LayerMergeError
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.merge import certify, collapse, relax
from trt_layermerge.tracing import trace_network

SIZE, PLANS, LIMIT_S = 128, 3, 1800
EXACT = 1e-9
"""Largest relative error in float64 that counts as none."""


def look_at(network: Network) -> Json:
    """Returns what there is to say of one network."""
    started = time.perf_counter()
    row: Json = {"name": network.name, "family": network.family}
    try:
        row |= _facts(network)
    except LayerMergeError as error:
        row |= {"traced": "graph" in row, "refused": str(error)}
    except Exception as error:  # what must not happen is told, not hidden
        row |= {"crash": f"{type(error).__name__}: {error}"[:300]}
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


@torch.no_grad()
def _facts(network: Network) -> Json:
    torch.manual_seed(0)
    model = nets.randomise(network.make())
    size = network.size or SIZE
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    traced = trace_network(model, image)
    graph = traced.graph
    candidates = enumerate_candidates(graph)
    found = reach(traced, candidates, (image,))
    untouched = relax(model, graph, MergePlan.of(graph, []))
    merged = collapse(untouched)
    return {
        "traced": True,
        "units": len(graph.conv_units),
        "pieces": len(graph.branches),
        "candidates": len(candidates),
        "gmacs": found.total / 1e9,
        "reached": found.reached,
        "left": found.left,
        "equal": _equal(model(image), untouched(image)),
        **_plans(model, graph, candidates, image),
        **_exported(merged, image),
    }


def _plans(
    model: nn.Module, graph: LayerGraph, candidates: Sequence[Candidate], image: Tensor
) -> Json:
    """Returns the largest error of a few random plans in float64, and how many are uncertified."""
    model, image = model.double(), image.double()
    changing = [c for c in candidates if not c.original]
    errors, uncertified = [], 0
    for seed in range(PLANS):
        relaxed = relax(model, graph, disjoint(graph, changing, random.Random(seed)))
        certificate = certify(relaxed, collapse(relaxed), image)
        errors.append(max(c.max_rel_error for c in certificate.checks if c.block != "weights"))
        uncertified += not certificate.ok
    model.float()
    return {"error": max(errors), "uncertified": uncertified}


def _exported(merged: nn.Module, image: Tensor) -> Json:
    """Returns how far ONNX Runtime is from torch on the merged network, or why it cannot be."""
    try:
        data = export_bytes(merged, image)
    except LayerMergeError as error:
        return {"onnx": None, "not_exported": str(error)[:300]}
    with get_backend("onnxruntime").open(data) as runner:
        found = list(runner.infer({"input": image.numpy()}).values())
    wanted = [t.numpy() for t in tree_leaves(merged(image)) if isinstance(t, Tensor)]
    errors = [
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
        for a, b in zip(found, wanted, strict=True)
    ]
    return {"onnx": max(errors)}


def _equal(expected: Any, found: Any) -> bool:
    pairs = zip(tree_leaves(expected), tree_leaves(found), strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


HEAD = """\
# Which networks it takes

{origin}

Networks of timm and torchvision as their libraries build them, with seeded weights, on one image \
of {size} pixels (or what the network demands). *Units* are convolutions that merging may touch, \
*pieces* parts that are not understood (residual branches, gates, concatenations) and may be left \
out or replaced whole. *In \
reach* is the share of all multiply-accumulates that some candidate changes, *left* the share that \
is left when every removal on offer is taken. *Equal* says whether the untouched plan computes bit \
by bit what the network does, *error* is the largest relative one of {plans} random plans in \
float64, merged against relaxed, and *ONNX* that of ONNX Runtime against torch. Networks that were \
drawn at random have [a page of their own](results/fuzz.md).

{summary}

| network | family | units | pieces | candidates | in reach | left | equal | error | ONNX |
|---|---|---|---|---|---|---|---|---|---|
{rows}

## Refused

{refused}

## The whole way

One network of each of {families} families, with random weights and images (64 pixels a side, or \
what the network demands where that is known), so that nothing here \
tells of quality: every stage from `inspect` to `package` by one recipe, to a plan 1.05 times as \
fast. *Seconds* are those of one core beside other work (load averages up to {load:.1f}). {walked}

| network | family | stages | seconds | measured | certificate |
|---|---|---|---|---|---|
{walks}

{unwalked}
"""


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    walks = [r for r in rows if r["kind"] == "walk"]
    arrived = [r for r in walks if "speedup" in r]
    rows = [r for r in rows if r["kind"] == "network"]
    good = [r for r in rows if "reached" in r]
    return HEAD.format(
        origin=measured_by("bm_coverage --record", header),
        size=SIZE,
        plans=PLANS,
        summary=_summary(rows, good),
        rows="\n".join(map(_line, good)),
        refused="\n".join(_refusal(r) for r in rows if "reached" not in r) or "None.",
        families=len({r["family"] for r in walks}),
        load=max(r.get("load", header["load"]) for r in walks),
        walked=(
            f"{len(arrived)} of {len(walks)} arrive, "
            f"{sum('refused' in r for r in walks)} are refused and "
            f"{sum('crash' in r for r in walks)} crash."
        ),
        walks="\n".join(map(_walk_line, arrived)),
        unwalked="\n".join(_refusal(r) for r in walks if "speedup" not in r),
    )


def _summary(rows: list[Json], good: list[Json]) -> str:
    crashed = sum("crash" in r for r in rows)
    exact = sum(r["error"] <= EXACT for r in good)
    families: dict[str, list[float]] = {}
    for row in good:
        families.setdefault(row["family"], []).append(row["left"])
    left = median(median(values) for values in families.values())
    poor = sum(r["reached"] < 0.25 for r in good)
    exported = sum(r["onnx"] is not None for r in good)
    return (
        f"{len(good)} of {len(rows)} networks of {len({r['family'] for r in rows})} families are "
        f"traced ({len(good) / len(rows):.0%}); {len(rows) - len(good) - crashed} are refused and "
        f"{crashed} crash. Of those traced, {exact} of {len(good)} merge with an error of at most "
        f"{EXACT:.0e}, the untouched plan of {sum(r['equal'] for r in good)} is bit-equal, and "
        f"{exported} are exported. The median share in reach is "
        f"{median(r['reached'] for r in good):.0%}; {poor} ({poor / len(good):.0%}) are below a "
        f"quarter. The median over families of what is left is {left:.2f}."
    )


def _line(row: Json) -> str:
    onnx = "not exported" if row["onnx"] is None else f"{row['onnx']:.0e}"
    return (
        f"| {row['name']} | {row['family']} | {row['units']} | {row['pieces']} | "
        f"{row['candidates']} | {row['reached']:.0%} | {row['left']:.2f} | "
        f"{'yes' if row['equal'] else 'no'} | {row['error']:.0e} | {onnx} |"
    )


def _walk_line(row: Json) -> str:
    return (
        f"| {row['name']} | {row['family']} | {len(row['stages'])} | {row['seconds']:.0f} | "
        f"{row['speedup']:.2f}x | {row['error']:.0e} |"
    )


def _refusal(row: Json) -> str:
    return f"- `{row['name']}`: {row.get('refused') or 'crash: ' + row['crash']}"


PAGE = Page("coverage", text, page=ROOT / "docs" / "coverage.md")


def _in_a_process(network: Network, kind: str) -> Json:
    """Returns the row of a network, looked at in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bm_coverage", "--one", network.name, kind]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT, check=False
        )
    except subprocess.TimeoutExpired:
        found = {"crash": f"not done after {LIMIT_S} s"}
    else:
        last = (done.stdout.strip().splitlines() or [""])[-1]
        if done.returncode == 0 and last.startswith("{"):
            return dict(json.loads(last))
        found = {"crash": f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"}
    return {"name": network.name, "family": network.family, **found}


def _one(network: Network, kind: str) -> Json:
    """Returns the row of a network, looked at here."""
    if kind == "network":
        return look_at(network)
    with tempfile.TemporaryDirectory() as folder:
        return walk(network, Path(folder))


def _begun(path: Path, again: Sequence[str]) -> Journal:
    """Returns the journal of a file; with ``again``, a new one begins with all other recorded rows.

    Every row keeps the commit that it was made at.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    journal = Journal.open(path, "coverage", {"size": SIZE, "plans": PLANS})
    if fresh and again:
        header, rows = read_lines(PAGE.data, PAGE.name)
        for row in rows:
            if row["name"] not in again:
                journal.add(**{"commit": header["commit"], **row})
    return journal


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks at every network that was not looked at yet; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_coverage", description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "KIND"), help="print a network's row")
    parser.add_argument("--work", type=Path, default=Path("runs/coverage.jsonl"))
    parser.add_argument("--again", nargs="+", default=(), metavar="NAME", help="look at anew")
    parser.add_argument("--record", action="store_true", help="write the page")
    given = parser.parse_args(arguments)
    known = {network.name: network for network in NETWORKS}
    if given.one is not None:
        print(json.dumps(_one(known[given.one[0]], given.one[1])))
        return 0
    journal = _begun(given.work, given.again)
    todo = [("network", network) for network in NETWORKS]
    todo += [("walk", known[name]) for name in WALKED]
    done = {(row["kind"], row.get("name")) for row in journal.rows}
    for number, (kind, network) in enumerate(todo):
        if (kind, network.name) not in done:
            row = _in_a_process(network, kind)
            journal.add(kind=kind, **row, load=session()["load"], commit=commit())
            told = row.get("refused") or row.get("crash") or f"done in {row['seconds']} s"
            print(f"{number + 1} of {len(todo)}: {network.name}, {kind}: {told}", flush=True)
    if given.record:
        order = [(kind, network.name) for kind, network in todo]
        rows = [row for row in journal.rows if (row["kind"], row.get("name")) in order]
        rows.sort(key=lambda row: order.index((row["kind"], row["name"])))
        commits = ", ".join(dict.fromkeys(c for r in rows for c in r["commit"].split(", ")))
        PAGE.record({"size": SIZE, "plans": PLANS, "commit": commits}, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
