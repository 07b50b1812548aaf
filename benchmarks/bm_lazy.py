"""Plans of a table in which most candidates only got a first look, against those of a full table.

Run as ``python -m benchmarks.bm_lazy [NETWORK...] [--weights FILE --images FILE]``; the same
command continues after an interruption. EfficientNet-Lite0 at 224 takes its real weights
(safetensors) and photographs (``train`` and ``val`` of an npz, uint8 ``(N, 224, 224, 3)``); both
glyph networks are in the clone. Latency is measured once for each network. Every seed draws images
to fit and to score on; the plans of both tables are repaired on the same images and compared on
``val``. Tables lie in ``runs/bm_lazy``; rows are appended to ``docs/results/data`` as they come.
Writes ``docs/results/lazy-tables.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import trt_layermerge as tlm
from benchmarks.results import Page, measured_by
from benchmarks.studies.journal import machine, session
from benchmarks.studies.settings import NETWORKS, ROOT
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.jsonio import Json, append_line, read_lines, write_lines
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.data import draw
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.importance.amounts import Amounts
from trt_layermerge.importance.distance import Distance
from trt_layermerge.importance.table import fill_table
from trt_layermerge.pipeline import api
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.search.lazy import FASTEST, refine
from trt_layermerge.search.solve import plan_within
from trt_layermerge.session.images import TensorImages, calibration_of, images_of
from trt_layermerge.session.scoring import Scoring, amounts_of, scorer_of, to_score
from trt_layermerge.session.starts import Starts

KIND = "lazy-tables"
RUNS = ROOT / "runs" / "bm_lazy"
LITE0 = "tf_efficientnet_lite0"
GLYPHS = {network.name: network.recipe for network in NETWORKS}
SEEDS, SPEEDUPS, ARMS = (0, 1, 2), (1.25, 1.5, 2.0), ("lazy", "full")
FIT, SCORE, JUDGED = 256, 128, 256
"""Images to fit on, to score on, and to compare whole networks on."""

FEW = Amounts(64, 16, 16, 64)
"""What ``effort: normal`` grants EfficientNet-Lite0 at 224; networks of 32x32 could afford all."""

WITHIN = 1.05
"""How much more a plan of the lazy table may lose than one of the full table."""

BATCH = 64


@dataclass(frozen=True)
class Network:
    """A network, and images ``(N, 3, H, W)`` as it takes them."""

    name: str
    model: nn.Module
    train: Tensor
    val: Tensor


def network(name: str, weights: Path | None, photographs: Path | None) -> Network:
    """Returns a network with its images; files are those of EfficientNet-Lite0."""
    if name in GLYPHS:
        run = api.open_run(GLYPHS[name], RunOptions(name, RUNS, GLYPHS[name], {}), NullReporter())
        val = run.data("val")
        assert val is not None
        return Network(name, run.session.model, images_of(run.train), images_of(val))
    if weights is None or photographs is None:
        raise SystemExit(f"{name} needs --weights FILE and --images FILE")
    model = timm.create_model(LITE0)
    model.load_state_dict(load_file(weights))
    with np.load(photographs) as file:
        train, val = (
            (torch.from_numpy(file[split]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
            for split in ("train", "val")
        )
    return Network(name, model.eval(), train, val)


def measured(found: Network, work: Path) -> tlm.Session:
    """Returns a session whose latencies are measured, now or before."""
    settings: Json = {
        "search": {"rules": "full"},
        "importance": {"fit_images": FIT, "score_images": SCORE},
    }
    open_session = partial(
        tlm.Session, found.model, found.train[:1], folder=work / found.name, settings=settings
    )
    if not (work / found.name / "latency.jsonl").exists():
        (work / found.name).mkdir(parents=True, exist_ok=True)
        first = open_session()
        first.inspect()
        first.measure()
    return open_session(stored=True)


def table_of(
    opened: tlm.Session, images: TensorImages, arm: str, seed: int, path: Path
) -> tuple[ImportanceTable, Amounts]:
    """Returns a table of importance and how many images made it; what was scored is kept.

    Args:
        opened: A session with latencies.
        images: Training images.
        arm: ``lazy`` or ``full``.
        seed: Of everything drawn.
        path: The table's file.
    """
    settings = opened.settings.model_copy(update={"seed": seed})
    wanted = to_score(opened.graph, opened.candidates, opened.latencies.table, settings)
    amounts = Amounts(SCORE)
    if arm == "lazy":
        amounts = amounts_of(opened.macs, len(wanted), settings)
        amounts = FEW if amounts.first is None else amounts
    kinds = tuple(opened.outputs.values())
    make = partial(scorer_of, opened.model, opened.graph, images, settings, kinds, amounts)
    scoring = Scoring(make, settings.scale, 0)

    def filled(candidates: Sequence[Candidate], first: bool = False) -> ImportanceTable:
        notes = {"arm": arm, "seed": seed, **asdict(amounts)}
        return fill_table(
            candidates, partial(scoring.scores, first=first), path, notes, first=first
        )

    table = filled(wanted, first=amounts.first is not None)
    if amounts.first is not None:
        if not looks_beside(path).exists():
            table.save(looks_beside(path))
        opened._made["importance"] = table
        table = refine(opened.problem, opened.latencies.table, filled)
    return table, amounts


def looks_beside(path: Path) -> Path:
    """Returns the file of the first looks that a lazy table began with."""
    return path.with_name(path.name.replace("lazy", "looks"))


def frontiers(opened: tlm.Session, looks: ImportanceTable, full: ImportanceTable) -> Json:
    """Returns whether first looks lead to the frontier of a full table, given its exact scores.

    So nothing differs but what is scored at all.

    Args:
        opened: A session with latencies.
        looks: A first look at every candidate.
        full: An exact score of every candidate.

    Returns:
        Points of the full table's frontier up to the speed that the lazy one is made for, how many
        of them the lazy one has too, how many candidates it scored, and how much more the plan in
        the place of a point loses at worst.
    """
    problem, table = replace(opened.problem, importance=looks), opened.latencies.table
    known = dict(looks.entries)

    def exactly(candidates: Sequence[Candidate]) -> ImportanceTable:
        known.update({c.key: full[c] for c in candidates})
        return ImportanceTable(dict(known))

    lazy = problem.frontier(table, refine(problem, table, exactly))
    exact = problem.frontier(table, full)
    slowest = float(problem.frontier(table, full, ()).latency_ms[0]) + table.overhead_ms
    points = [p for p in exact if p[0] + table.overhead_ms >= slowest / FASTEST]
    ratios = [1.0]
    for ms, score in points:
        place = int(np.searchsorted(lazy.latency_ms, ms, side="right")) - 1
        changed = (o.payload for o in lazy.solution(place).options if not o.payload.original)
        if score < 0:
            ratios.append(sum(full[c].delta for c in changed) / score)
    return {
        "points": len(points),
        "shared": len({*points} & {*lazy}),
        "scored": sum(entry.images is None for entry in known.values()),
        "worst": max(ratios),
    }


def plans_of(
    opened: tlm.Session, table: ImportanceTable, images: TensorImages, val: Tensor, seed: int
) -> list[Json]:
    """Returns for each speed-up the plan that a table prefers, and what it loses when repaired.

    Args:
        opened: A session with latencies.
        table: Importance.
        images: Training images, of which the seed draws those to repair on.
        val: Images to compare on.
        seed: Of everything drawn.
    """
    problem, latencies = replace(opened.problem, importance=table), opened.latencies
    frontier = problem.frontier(latencies.table)
    starts = Starts(
        opened.model,
        opened.graph,
        table,
        calibration_of(images, FIT, SCORE, seed)[0],
        None,
        opened.settings.model_copy(update={"seed": seed}),
        opened.tell,
        tuple(opened.outputs.values()),
    )
    rows = []
    for speedup in SPEEDUPS:
        budget_ms = latencies.original_ms / speedup
        try:
            plan = plan_within(
                frontier, latencies.table, budget_ms, problem.precision, problem.batch
            )
        except InfeasibleBudgetError:
            continue
        with torch.no_grad():
            distance = Distance.to([opened.model(part) for part in val.split(BATCH)], starts.kinds)
            repaired = starts.repaired(plan)
            kl = distance.of(repaired(part) for part in val.split(BATCH))
        rows.append(
            {
                "speedup": speedup,
                "predicted_ms": plan.latency_ms,
                "sum": -sum(table[c].delta for c in plan.changed),
                "kl": kl,
                "blocks": [str(c) for c in plan.changed],
            }
        )
    return rows


def row_of(found: Network, arm: str, seed: int, work: Path) -> Json:
    """Returns what one table cost, and what its plans lose."""
    opened = measured(found, work)
    images = TensorImages(found.train)
    val: Any = images_of(draw(TensorImages(found.val), JUDGED, 0))
    path = work / found.name / f"{arm}-{seed}.jsonl"
    fresh = not path.exists()
    started = time.perf_counter()
    table, amounts = table_of(opened, images, arm, seed, path)
    seconds = time.perf_counter() - started
    opened._made["importance"] = table
    looks = looks_beside(work / found.name / f"lazy-{seed}.jsonl")
    compared = arm == "full" and looks.exists()
    return {
        **({"frontier": frontiers(opened, ImportanceTable.load(looks), table)} if compared else {}),
        **session(),
        "network": found.name,
        "seed": seed,
        "arm": arm,
        "seconds": seconds if fresh else None,
        "amounts": asdict(amounts),
        "entries": len(table.entries),
        "scored": sum(entry.images is None for entry in table.entries.values()),
        "original_ms": opened.latencies.original_ms,
        "val": len(val),
        "plans": plans_of(opened, table, images, val, seed),
    }


def pairs(rows: Sequence[Json]) -> list[tuple[Json, Json]]:
    """Returns the rows of both tables, lazy first, for every network and seed that has both."""
    known = {(row["network"], row["seed"], row["arm"]): row for row in rows}
    places = dict.fromkeys((row["network"], row["seed"]) for row in rows)
    both = [tuple(known.get((*place, arm)) for arm in ARMS) for place in places]
    return [(lazy, full) for lazy, full in both if lazy is not None and full is not None]


def compared(lazy: Json, full: Json) -> list[tuple[Json, Json]]:
    """Returns the plans of both tables at every speed-up that both reach."""
    theirs = {plan["speedup"]: plan for plan in full["plans"]}
    return [(p, theirs[p["speedup"]]) for p in lazy["plans"] if p["speedup"] in theirs]


def page(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    found = pairs(rows)
    plans = [pair for both in found for pair in compared(*both)]
    good = [p["kl"] <= WITHIN * q["kl"] for p, q in plans]
    same = [p["blocks"] == q["blocks"] for p, q in plans]
    ratios = sorted(p["kl"] / q["kl"] for p, q in plans)
    absent = [
        name for name in (LITE0, *GLYPHS) if name not in {both[0]["network"] for both in found}
    ]
    lines = [
        "# Plans of a lazy table and of a full one",
        "",
        measured_by("bm_lazy", header) + " One thread. Figures: `data/lazy-tables.jsonl`.",
        "",
        "A *full* table scores every candidate that saves latency by every repair, the best of "
        f"them on {SCORE} images (`importance.effort: thorough`). A *lazy* one looks at each on "
        "a few images with one repair, then scores those that plans up to fourfold speed may use "
        "(`normal`). Networks of 32x32 pixels could afford the full table; here they get what "
        f"{LITE0} does at 224. Both are fitted on at most {FIT} images, share a latency table, "
        "and the plan of highest score at each predicted speed-up is repaired on the same images. "
        "Its loss is the KL divergence of the answers of the whole network on "
        f"{JUDGED} images of `val`, in nats; no plan is measured, drawn around or raced here.",
        "",
        f"Of {len(plans)} plans of lazy tables, {sum(same)} are those of the full table, block for "
        f"block, and {sum(good)} lose at most {100 * (WITHIN - 1):.0f} % more than it."
        + (
            f" The ratio of both losses is {ratios[len(ratios) // 2]:.3f} in the middle, "
            f"{ratios[-1]:.3f} at worst."
            if ratios
            else ""
        ),
        "",
        "| network | seed | lazy: looked at, scored | full: scored | lazy, s | full, s | "
        + " | ".join(f"{speedup:g}x: KL lazy, full" for speedup in SPEEDUPS)
        + " |",
        "|" + "---|" * (6 + len(SPEEDUPS)),
    ]
    for lazy, full in found:
        cells = {p["speedup"]: (p, q) for p, q in compared(lazy, full)}
        losses = [_cell(*cells[s]) if s in cells else "not reached" for s in SPEEDUPS]
        seconds = [f"{row['seconds']:.0f}" if row["seconds"] else "" for row in (lazy, full)]
        lines.append(
            f"| {lazy['network']} | {lazy['seed']} | {lazy['entries']}, {lazy['scored']} | "
            f"{full['scored']} | {' | '.join([*seconds, *losses])} |"
        )
    lines += ["", "`=`: the same blocks; where losses differ then, repairs do."]
    lines += _frontiers([full for _, full in found if "frontier" in full])
    if absent:
        lines += ["", f"Not measured yet: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"


def _frontiers(rows: Sequence[Json]) -> list[str]:
    """Returns what came of the frontiers of first looks, refined by the full tables' scores."""
    if not rows:
        return []
    lines = [
        "",
        "With the scores of the full table in place of its own, a lazy table differs from it in "
        f"what is scored at all. Of the frontier up to {FASTEST:g}x as fast it then has:",
        "",
        "| network | seed | points | the same | scored of | loses more, at worst |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row["frontier"]
        lines.append(
            f"| {row['network']} | {row['seed']} | {found['points']} | {found['shared']} | "
            f"{found['scored']} of {row['entries']} | {100 * (found['worst'] - 1):.1f} % |"
        )
    return lines


def _cell(lazy: Json, full: Json) -> str:
    sign = " =" if lazy["blocks"] == full["blocks"] else ""
    return f"{lazy['kl']:.4f}, {full['kl']:.4f}{sign}"


PAGE = Page(KIND, page)


def main() -> None:
    """Makes the tables that are missing, one row each, and writes the page."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[*GLYPHS, LITE0], help="which networks")
    parser.add_argument("--weights", type=Path, help=f"of {LITE0} (safetensors)")
    parser.add_argument("--images", type=Path, help="photographs for it (npz)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds of the images")
    parser.add_argument("--work", type=Path, default=RUNS, help="folder of the tables")
    given = parser.parse_args()
    if not PAGE.data.exists():
        write_lines(PAGE.data, KIND, {**machine(), **session()}, ())
    for name in given.networks:
        found = network(name, given.weights, given.images)
        for seed in given.seeds:
            for arm in ARMS:
                rows = read_lines(PAGE.data, KIND)[1]
                if (name, seed, arm) in {(r["network"], r["seed"], r["arm"]) for r in rows}:
                    continue
                row = row_of(found, arm, seed, given.work)
                append_line(PAGE.data, row)
                PAGE.write()
                told = {plan["speedup"]: round(plan["kl"], 4) for plan in row["plans"]}
                print(name, seed, arm, row["seconds"], row["scored"], told, flush=True)
    print(PAGE.path)


if __name__ == "__main__":
    main()
