"""``docs/results/importance.md``: the importance study in words, tables and a plot."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import mean, median

import numpy as np

from benchmarks.studies.candidates import METHODS, VARIANTS
from benchmarks.studies.glyphs_page import made_by, points, read_glyphs
from benchmarks.studies.statistics import across, agreement
from trt_layermerge.core.jsonio import Json, read_lines
from trt_layermerge.measure.fit import rank_correlation

PLOT = "importance.svg"

TRIED = (
    "## What was tried, and what became of it",
    "",
    "Judged on `val`, mostly by whole trainings of a few plans of ResNet-20 at 2x with one to "
    "three seeds, before the glyph study was settled: reasons for a design, not results.",
    "",
    "- **Single units fitted by smaller kernels** lose least of all before training. The two "
    "plans that were chosen with them ended below all others, also the one that kept all "
    "activations, so they are no longer offered. A reward for kept activations "
    "(`search.objective.capacity`) and Σ exp(Δ) both "
    "bought activations with such kernels.",
    "- **The joint loss of the repaired network**, also with every kept unit and the classifier "
    "fitted anew behind the changes, tells how good a network is before training, and hardly how "
    "good it becomes: removals start worst and end among the best.",
    "- **Fitting what follows a block before it is scored** (the variants `refit-*`) agrees much "
    "better with `finetune` across kinds. The scores do not add up, for neighbours count on the "
    "same unit to make up for both, and the plan that the exact search found lost more as a whole.",
    "- **A whole short training** of one or four epochs, its learning rate lowered to 0, put the "
    "plans in another order than the long one. Its first epochs, at a high rate, told the "
    "kinds apart, though not every plan: hence the race (`pipeline.race`), between plans of all"
    " kinds, of none fitted, and of removals "
    "alone.",
    "- **Merging before the training** ended better than training kept convolutions one by one in "
    "three of four trials of one seed, two of them on the MobileNetV2-like net, and takes less "
    "time: the default after a repair.",
)
"""Not measured by a study: see the first sentence."""

Repeats = list[list[float]]
"""Deltas of the same candidates in the same order, one list a seed."""


def importance_page(path: Path) -> str:
    """Returns the page of a result file, as Markdown."""
    header, rows = read_lines(path, "importance-study")
    names = [row["network"] for row in rows if row["kind"] == "network"]
    lines = [
        "# Two ways to score a block, compared",
        "",
        made_by("benchmarks.studies.importance", header, rows)
        + " Results: `data/importance.jsonl`; this page: `python -m benchmarks.studies.report`.",
        "",
        "`calibrate` repairs a block in closed form and takes the KL divergence of the network's "
        "answers from the original's, without labels or training. `finetune` is the paper's "
        "protocol on the study's images: one short training with this block replaced, then the "
        "change of accuracy on images held out of `train`. Both score the same candidates, drawn "
        "evenly over the kinds. A seed decides which training images are held out or fitted on, "
        "and all that is random in scoring. What decides between them is not how well they agree "
        f"but the accuracy of the networks that they choose: {_glyphs(path)}. "
        f"{_offered_no_longer(rows)}".rstrip(),
        "",
        f"![Loss of whole plans against the sum of their single losses]({PLOT})",
    ]
    for name in names:
        lines += ["", *_network(name, [row for row in rows if row.get("network") == name])]
    lines += ["", *TRIED]
    glyphs = path.with_name("glyphs.jsonl")
    if glyphs.exists():
        lines += ["", *_networks_of_each(glyphs)]
    return "\n".join(lines) + "\n"


def _networks_of_each(path: Path) -> list[str]:
    """Returns what the networks came to that each method selected."""
    _, networks, _ = read_glyphs(path)
    lines = [
        "## The networks that each selects, trained",
        "",
        "From the [glyph study](glyphs.md): means of the seeds on `test`. On the side of "
        "`calibrate` stand all rules and a race of the best plans, on that of `finetune` the "
        "published rules and start. What is not equally fast is left out. Seconds are those of the "
        "whole table.",
        "",
        "| network | wanted | calibrate | finetune | difference | calibrate, s | finetune, s |",
        "|---|---|---|---|---|---|---|",
    ]
    leads = []
    for network in networks:
        took = {row["tables"]: row["seconds"] for row in network.tables}
        seconds = [
            "-" if took.get(table) is None else f"{took[table]:.0f}" for table in ("full", "paper")
        ]
        for (arm, wanted), ours in network.cells.items():
            paper = network.cells.get(("paper", wanted))
            if arm == "ours" and paper is not None and ours.comparable(paper):
                lead = network.against(ours.hits, paper.hits)
                leads.append(lead.mean)
                lines.append(
                    f"| {network.name} | {wanted:g}x | {ours.hits.mean():.1%} "
                    f"| {paper.hits.mean():.1%} | {points(lead)} | {' | '.join(seconds)} |"
                )
    if not leads:
        return [*lines[:3], "No two of them are equally fast."]
    better, worse = (sum(sign * lead > 0 for lead in leads) for sign in (1, -1))
    favoured = "neither" if better == worse else "`calibrate`" if better > worse else "`finetune`"
    return [
        *lines,
        "",
        f"In {better} of {len(leads)} cases networks of `calibrate` are the more accurate ones, "
        f"in {worse} those of `finetune`: these figures favour {favoured}.",
    ]


def _glyphs(path: Path) -> str:
    """Returns where the glyph study is, once it has results."""
    done = path.with_name("glyphs.jsonl").exists()
    return "[accuracy at equal measured latency](glyphs.md)" if done else "a study not finished yet"


def _offered_no_longer(rows: Sequence[Json]) -> str:
    """Returns a sentence about candidates of the study that the search has dropped since."""
    blocks = {
        (row["network"], row["about"])
        for row in rows
        if row["kind"] == "score" and row["candidate"] == "fit" and "about" in row
    }
    ends = [map(int, about.split()[1].split(":")) for _, about in blocks]
    dropped = sum(end - start == 1 for start, end in ends)
    if not dropped:
        return ""
    return f"Of the candidates, {dropped} fit a single unit; such are offered no longer."


def repeats(rows: Sequence[Json], method: str, among: Collection[str] | None = None) -> Repeats:
    """Returns what a method says of every candidate, or of those among some keys, by seed."""
    wanted = [r for r in rows if r["kind"] == "score" and r["method"] == method]
    wanted = [r for r in wanted if among is None or r["key"] in among]
    seeds = sorted({row["seed"] for row in wanted})
    keys = sorted({row["key"] for row in wanted})
    found = {(row["seed"], row["key"]): float(row["delta"]) for row in wanted}
    return [[found[seed, key] for key in keys] for seed in seeds]


def _network(name: str, rows: list[Json]) -> list[str]:
    return [
        f"## {name}",
        "",
        *_agreement(rows),
        "",
        *_cost(rows),
        "",
        *_variants(rows),
        *_additivity(rows),
        "",
        *_objectives(rows),
    ]


def _agreement(rows: list[Json]) -> list[str]:
    kinds = list(dict.fromkeys(row["candidate"] for row in rows if row["kind"] == "score"))
    lines = [
        "### Rank correlation (Spearman), mean and range over pairs of seeds",
        "",
        "| candidates | n | finetune with itself | calibrate with itself | calibrate with finetune "
        "| means over seeds |",
        "|---|---|---|---|---|---|",
    ]
    for kind in (None, *kinds):
        keys = {r["key"] for r in rows if r["kind"] == "score" and kind in (None, r["candidate"])}
        ours, papers = (repeats(rows, method, keys) for method in METHODS)
        together = rank_correlation(_means(ours), _means(papers))
        lines.append(
            f"| {kind or 'all'} | {len(ours[0])} | {_range(agreement(papers))} "
            f"| {_range(agreement(ours))} | {_range(across(ours, papers))} | {together:.2f} |"
        )
    return [
        *lines,
        "",
        "Chance in each lowers their agreement: the most to be expected of two measures is about "
        "the geometric mean of how far each agrees with itself.",
    ]


def _means(found: Repeats) -> list[float]:
    return [mean(values) for values in zip(*found, strict=True)]


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _cost(rows: list[Json]) -> list[str]:
    lines = [
        "### Cost of one entry on one core, in seconds",
        "",
        "Medians over the candidates, of the fastest and of the slowest seed: other work on the "
        "machine lengthens them.",
        "",
        "| method | fastest seed | slowest seed | once, before the first |",
        "|---|---|---|---|",
    ]
    for method in METHODS:
        scored = [r for r in rows if r["kind"] == "score" and r["method"] == method]
        medians = [
            median(row["seconds"] for row in scored if row["seed"] == seed)
            for seed in {row["seed"] for row in scored}
        ]
        once = min(row["prepared_s"] for row in scored)
        lines.append(f"| {method} | {min(medians):.2f} | {max(medians):.2f} | {once:.1f} |")
    return lines


def _variants(rows: list[Json]) -> list[str]:
    """Returns the table of other ways to calibrate, if any was tried."""
    scored = [row for row in rows if row["kind"] == "score"]
    tried = [name for name in VARIANTS if any(row["method"] == name for row in scored)]
    if not tried:
        return []
    lines = [
        "### Other ways to calibrate",
        "",
        "Rank correlations on the candidates that each can score, as above; with `finetune` the "
        "means over seeds are compared. Seconds: median of an entry, all seeds.",
        "",
        "| variant | what it is | n | with itself | with calibrate | with finetune "
        "| calibrate with finetune, same candidates | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in tried:
        own = [row for row in scored if row["method"] == name]
        keys = {row["key"] for row in own}
        found = repeats(rows, name, keys)
        ours, papers = (repeats(rows, method, keys) for method in METHODS)
        lines.append(
            f"| {name} | {VARIANTS[name].about} | {len(keys)} | {_range(agreement(found))} "
            f"| {_range(across(found, ours))} "
            f"| {rank_correlation(_means(found), _means(papers)):.2f} "
            f"| {rank_correlation(_means(ours), _means(papers)):.2f} "
            f"| {median(row['seconds'] for row in own):.2f} |"
        )
    return [*lines, ""]


def _additivity(rows: list[Json]) -> list[str]:
    lines = [
        "### Does the sum of single losses tell the loss of a plan?",
        "",
        "KL in nats, whole plans repaired in sequence. *near*: as a search looks at, exact optima "
        "of perturbed losses at falling latencies.",
        "",
        "| plans | n | blocks | joint KL | Spearman, sum and joint | joint / sum, median (range) |",
        "|---|---|---|---|---|---|",
    ]
    for by in ("random", "near"):
        plans = [row for row in rows if row["kind"] == "plan" and row.get("by", "random") == by]
        if not plans:
            continue
        summed, joint = [row["sum"] for row in plans], [row["joint"] for row in plans]
        ratios = [b / a for a, b in zip(summed, joint, strict=True) if a > 0]
        blocks = sorted(row["blocks"] for row in plans)
        lines.append(
            f"| {by} | {len(plans)} | {blocks[0]} to {blocks[-1]} "
            f"| {min(joint):.3f} to {max(joint):.3f} | {rank_correlation(summed, joint):.3f} "
            f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return lines


def _objectives(rows: list[Json]) -> list[str]:
    found = {(row["share"], row["form"]): row for row in rows if row["kind"] == "objective"}
    lines = [
        "### The plans that each objective prefers, at equal predicted latency",
        "",
        "`delta` maximises Σ Δ (the least ΣKL), `exp` the published Σ exp(Δ), which adds about 1 "
        "for every block that is left, whatever it is. Scores by `calibrate`; joint KL after "
        "repairs in sequence, before any training.",
        "",
        "| latency, at most | delta: joint KL | convolutions with an activation "
        "| exp: joint KL | convolutions with an activation |",
        "|---|---|---|---|---|",
    ]
    for share in dict.fromkeys(share for share, _ in found):
        cells = [
            f"{row['joint']:.3f} | {row['nonlinear']}"
            for form in ("delta", "exp")
            if (row := found.get((share, form))) is not None
        ]
        lines.append(f"| {share:.0%} | {' | '.join(cells)} |")
    return lines


def plan_points(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns summed and joint losses of all plans by network."""
    _, rows = read_lines(path, "importance-study")
    plans = [row for row in rows if row["kind"] == "plan"]
    return {
        name: (
            np.array([row["sum"] for row in plans if row["network"] == name]),
            np.array([row["joint"] for row in plans if row["network"] == name]),
        )
        for name in dict.fromkeys(row["network"] for row in plans)
    }
