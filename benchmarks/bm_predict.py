"""Predicted against measured latency of whole merged networks.

Run as ``python -m benchmarks.bm_predict`` on a quiet machine. For each network and each set of
rules: trace, measure every candidate's specs, build random plans whole (relaxed, collapsed,
exported), time them beside the original, fit the table to two thirds and predict the rest. The same
command continues after an interruption, case by case; results of other settings are refused, not
mixed. With all cases measured it writes ``docs/results/data/latency-prediction.jsonl`` and
``docs/results/latency-prediction.md``; with other settings than the published ones it writes both
below ``--work``. To measure everything anew, choose another folder (``--work``).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.predict_page import CASES, NETWORKS, OFFERS, Case, case_lines, page
from benchmarks.results import Page
from benchmarks.studies.journal import Journal
from tests.measure.networks import measured
from trt_layermerge.backends import Backend, get_backend
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import LayerMergeError
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.measure.fit import Observation, fit_latency, settled
from trt_layermerge.measure.meter import BackendMeter
from trt_layermerge.measure.timing import VARIATION_LIMIT, Turns, speedup, time_models
from trt_layermerge.models.networks import load_network
from trt_layermerge.search.sampling import in_portions, inside_of, sample_plans, specs_of, useful
from trt_layermerge.session.networks import Networks
from trt_layermerge.session.settings import MeasureSection
from trt_layermerge.tracing import trace

PAGE = Page("latency-prediction", page)
LIBRARIES = {"efficientnet_lite0": "timm"}
"""Where a network is from, unless it is torchvision."""

GROUP = 8
"""Networks that are timed in turns at once, beside the original."""


@dataclass(frozen=True)
class Effort:
    """How much is measured; by default what is published.

    Attributes:
        plans: Random plans; every third tests, since they run from hardly to utterly changed.
        rounds: Bursts of each network.
        size: Height and width of the input.
        seed: Seed of the input and the plans.
    """

    plans: int = 48
    rounds: int = 20
    size: int = 224
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What one network showed, and what it was shown with."""

    case: Case
    networks: Networks
    faster: list[Candidate]
    table: LatencyTable


def run(
    name: str,
    offer: str,
    backend: Backend,
    precision: Precision = "fp32",
    effort: Effort | None = None,
) -> Outcome:
    """Returns the outcome for a network with random weights and an offer of candidates."""
    effort = effort or Effort()
    started = time.perf_counter()
    noise = torch.Generator().manual_seed(effort.seed)
    example = torch.randn(1, 3, effort.size, effort.size, generator=noise)
    model = load_network(f"{LIBRARIES.get(name, 'torchvision')}:{name}")
    graph = trace(model, example)
    rules, kinds = OFFERS[offer]
    candidates = enumerate_candidates(graph, rules, kinds=kinds)
    networks = Networks(
        model, graph, example, precision, "fp32", BackendMeter(backend), Callbacks()
    )
    bare, table_s = measure_table(graph, candidates, backend, precision)
    faster = useful(graph, candidates, bare, precision, 1)
    plans = sample_plans(graph, faster, effort.plans, effort.seed)
    began = time.perf_counter()
    original_ms, latencies, noisy = measure(networks, plans, backend, effort.rounds)
    a_network_s = (time.perf_counter() - began) / max(1, len(plans))
    seen = [observed(plan, ms) for plan, ms in zip(plans, latencies, strict=True)]
    untouched = observed(MergePlan.of(graph, []), original_ms)
    fits = [untouched, *(observation for i, observation in enumerate(seen) if i % 3 != 2)]
    tests = seen[2::3]
    fitted = fit_latency(bare, fits, precision, 1)
    few, count = usual(bare, plans, latencies, untouched, precision)
    case = Case(
        name=f"{name}-{offer}",
        specs=len(bare.entries),
        table_s=table_s,
        fitted=len(fits),
        promised=dict(fitted.notes["fit"]),
        original_ms=original_ms,
        measured=[o.ms for o in tests],
        predicted=[predict(fitted, o, precision) for o in tests],
        alone=[predict(bare, o, precision) for o in tests],
        noisy=noisy,
        seconds=time.perf_counter() - started,
        load=os.getloadavg()[0],
        usual=count,
        usual_s=table_s + count * a_network_s,
        usually=[predict(few, o, precision) for o in tests],
    )
    return Outcome(case, networks, faster, fitted)


def usual(
    bare: LatencyTable,
    plans: Sequence[MergePlan],
    latencies: Sequence[float],
    untouched: Observation,
    precision: Precision,
) -> tuple[LatencyTable, int]:
    """Returns the table fitted to as many networks as a run measures, and how many these are.

    Args:
        bare: Blocks measured alone.
        plans: Random plans; every third tests, the others are there to be fitted to.
        latencies: What they take, in ms.
        untouched: The original network.
        precision: Precision of all of them.
    """
    known = dict(zip(map(id, plans), latencies, strict=True))
    offered = [plan for place, plan in enumerate(plans) if place % 3 != 2]
    wanted = MeasureSection().networks
    sample = [
        offered[i] for i in np.linspace(0, len(offered) - 1, min(wanted, len(offered)), dtype=int)
    ]
    seen = [untouched]
    for portion in in_portions(sample):
        seen += [observed(plan, known[id(plan)]) for plan in portion]
        table = fit_latency(bare, seen, precision, 1)
        if settled(table):
            break
    return table, len(seen) - 1


def measure_table(
    graph: LayerGraph, candidates: Sequence[Candidate], backend: Backend, precision: Precision
) -> tuple[LatencyTable, float]:
    """Returns the latency of everything that a plan may run, and the seconds that it took."""
    originals = [original_candidate(graph, unit.index) for unit in graph.units]
    specs = [spec for c in [*candidates, *originals] for spec in c.costs]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        table = measured(specs, backend, precision, 1, Path(folder) / "latency.sqlite")
        return table, time.perf_counter() - start


def predict(table: LatencyTable, network: Observation, precision: Precision = "fp32") -> float:
    """Returns the predicted latency of a network in ms."""
    costs = (n * table[spec, precision, 1] for spec, n in network.counts.items())
    return table.overhead_ms + sum(costs)


def observed(plan: MergePlan, ms: float) -> Observation:
    """Returns a measured plan as something that a table is fitted to."""
    return Observation(specs_of(plan), ms, inside_of(plan))


def measure(
    networks: Networks, plans: Sequence[MergePlan], backend: Backend, rounds: int
) -> tuple[float, list[float], int]:
    """Returns ms of the original and of each plan, and how many networks varied too much.

    Groups are paired by the original, whose latency is that of the first group.
    """
    original_ms, latencies, noisy = 0.0, [], 0
    for start in range(0, len(plans), GROUP):
        models = [networks.plan_onnx(plan) for plan in plans[start : start + GROUP]]
        models = [networks.original_onnx, *models]
        reference, *timings = time_models(models, backend, Turns(rounds=rounds))
        original_ms = original_ms or reference.ms
        latencies += [original_ms / speedup(reference, timing).value for timing in timings]
        noisy += sum(timing.variation > VARIATION_LIMIT for timing in timings)
        print(f"  {len(latencies)} of {len(plans)} networks", flush=True)
    return original_ms, latencies, noisy


def measure_cases(
    journal: Journal, wanted: Sequence[str], backend: Backend, effort: Effort
) -> None:
    """Measures the wanted cases that the journal does not have yet."""
    for name in wanted:
        if name in {row["name"] for row in journal.of("case")}:
            print(f"{name}: measured already", flush=True)
            continue
        print(f"{name}: {1 + list(CASES).index(name)} of {len(CASES)}", flush=True)
        case = run(*CASES[name], backend, effort=effort).case
        journal.add(kind="case", **case.row())
        print("\n".join(case_lines(case)), flush=True)


def publish(journal: Journal, target: Page) -> None:
    """Writes figures and page in the order of the cases, once all are measured."""
    found = {row["name"]: row for row in journal.of("case")}
    if len(found) < len(CASES):
        print(f"{len(found)} of {len(CASES)} cases measured; the page is written when all are")
        return
    rows = [*sessions(journal.rows), *(found[name] for name in CASES)]
    replace(journal, rows=rows).copy_to(target.data)
    target.write()
    print(f"{target.path} written")


def sessions(rows: Sequence[Json]) -> list[Json]:
    """Returns the sessions in which something was measured."""
    kinds = ("session", "case")
    return [row for row, after in pairwise(rows) if (row["kind"], after["kind"]) == kinds]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing and publishes the whole. Returns 0, or 1 on an error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, default=Path("runs/latency-prediction"), metavar="DIR")
    add("--only", nargs="+", choices=[*NETWORKS, *CASES], metavar="NAME", help="network or case")
    for name, value in asdict(Effort()).items():
        add(f"--{name}", type=int, default=value, metavar="N", help=f"{value} is published")
    given = parser.parse_args(arguments)
    effort = Effort(given.plans, given.rounds, given.size, given.seed)
    backend = get_backend("onnxruntime")
    only = given.only or CASES
    wanted = [name for name, (network, _) in CASES.items() if name in only or network in only]
    settings: Json = {**asdict(effort), "precision": "fp32", "device": str(backend.device())}
    try:
        journal = Journal.open(given.work / "journal.jsonl", PAGE.name, settings)
        measure_cases(journal, wanted, backend, effort)
        publish(journal, PAGE if effort == Effort() else replace(PAGE, results=given.work))
    except LayerMergeError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
