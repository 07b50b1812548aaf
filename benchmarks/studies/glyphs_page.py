"""``docs/results/glyphs.md``: the glyph study in words, tables and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies.arms import ARMS, PAST
from benchmarks.studies.choosing import TOLERANCE
from benchmarks.studies.figures import Cell, NetworkFigures
from benchmarks.studies.statistics import SAMPLES, Interval
from trt_layermerge.core.jsonio import Json, read_lines
from trt_layermerge.measure.fit import rank_correlation

AIMS = {
    ("resnet20", 1.5): 0.0,
    ("resnet20", 2.0): 0.5,
    ("resnet20", 2.8): 1.5,
    ("mobilenet_v2", 1.5): 1.0,
    ("mobilenet_v2", 2.0): 2.0,
}
"""Most points that ours was meant to lose."""

REASONS = (
    "## Where ours is not ahead, and why",
    "",
    "- Where little is removed, arms differ by about what the choice of images decides: `val` and "
    "`test` have other fonts, and they do not agree about who is ahead.",
    "- Every arm is taught by the original's answers, so it learns the original's mistakes. On "
    "ResNet-20 labels add more than what lies between ours and the best of the others.",
    "- A race tells plans apart by some hundred steps at a high learning rate. Where several learn "
    "nearly alike it is a noisy judge, and it sees a good start more than a good end: merges that "
    "lose little at the start were taken although removals that lose more may end higher.",
    "- Our start is worth most where much is merged, and nothing where blocks are removed: then "
    "there is nothing to fit. The more is taken out, the more the choice of blocks matters, and "
    "there ours is ahead or level.",
    "- Tried on `val` and not taken: fits of single units, which lose least before training and "
    "learn worst, so they are no longer offered; the loss before training alone, which ranks "
    "badly across kinds; laps with an annealed learning rate, which mislead. Not tried: laps of a "
    "whole epoch, races of more plans that measure alike.",
)
"""What the figures do not say by themselves; for the networks that have aims."""

ABOUT = {arm.name: arm.about for arm in (*ARMS, *PAST)}
PLOT = "glyphs.svg"


def read_glyphs(path: Path) -> tuple[Json, list[NetworkFigures], list[Json]]:
    """Returns header, figures by network and all rows of a result file."""
    header, rows = read_lines(path, "glyphs")
    settings = header["settings"]
    names = [row["network"] for row in rows if row["kind"] == "network"]
    networks = [NetworkFigures(rows, n, settings["rates"]) for n in names]
    return header, networks, rows


def glyphs_page(path: Path) -> str:
    """Returns the page of a result file, as Markdown."""
    header, networks, rows = read_glyphs(path)
    lines = ["# Accuracy at equal measured latency", "", *_how(header, rows, networks)]
    for network in networks:
        lines += ["", *_network(network)]
    if any(
        row["network"] in {name for name, _ in AIMS} for row in rows if row["kind"] == "network"
    ):
        lines += ["", *REASONS]
    return "\n".join(lines) + "\n"


def made_by(command: str, header: Json, rows: list[Json]) -> str:
    """Returns a sentence about command, machine, versions and commits of a study."""
    sessions = [row for row in rows if row["kind"] == "session"]
    commits = ", ".join(dict.fromkeys(f"`{row['commit']}`" for row in sessions))
    found = header["versions"]
    libraries = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "onnxruntime"))
    loads = [row["load"] for row in sessions]
    return (
        f"Made by `python -m {command}` at {commits} in {len(sessions)} sittings on "
        f"{header['cpu']} with {header['cores']} cores; {libraries}; load average at the start of "
        f"a sitting {min(loads):.1f} to {max(loads):.1f}."
    )


def _how(header: Json, rows: list[Json], networks: list[NetworkFigures]) -> list[str]:
    settings = header["settings"]
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["kind"] == "plan"))
    rates = ", ".join(f"{rate:g}" for rate in settings["rates"])
    return [
        made_by("benchmarks.studies.glyphs", header, rows)
        + " Results: `data/glyphs.jsonl`; this page: `python -m benchmarks.studies.report`.",
        "",
        "An arm's plan is what the pipeline's search comes to, if the whole network measures "
        f"within {TOLERANCE:.0%} of the wanted latency; else the best by the arm's own rule among "
        "plans found exactly under perturbed scores that measure so, even where that rule prefers "
        "a faster one; else the nearest. Plans that race are always looked for in this second way, "
        "more of them; the race is judged by the labels of `val` and runs at the recipe's own "
        "learning rate. `random` draws blindly near the latency. `!` marks plans that are farther "
        "away in the end. Only arms that "
        f"measure within {2 * TOLERANCE:.0%} of ours are compared with it. The speed-ups below "
        "come from one last measurement, of all plans of a network in turns with the original.",
        "",
        "Unless its line says otherwise, every arm is trained with the same images, epochs, "
        "augmentation and distillation (those of the recipe: by the original's answers, without "
        f"labels). It chose one learning rate for a network among {rates}: the best mean "
        "accuracy on `val` over its speed-ups, with the first seed; post-training has a fixed one. "
        "`test` was opened once for each finished network, after everything of its arm was "
        f"chosen. {_given_up(networks)}".rstrip(),
        "",
        "Intervals are 95 % of "
        f"{SAMPLES:,} bootstrap replicates that draw fonts and seeds anew; differences are paired "
        "by image. Few seeds make the part of the seeds too small. Tables and plans other than "
        "`random` come from seed 0 alone: what another seed would choose is not in the intervals.",
        "",
        "| arm | what it is |",
        "|---|---|",
        *(f"| {arm} | {ABOUT[arm]} |" for arm in arms),
        "",
        f"![Accuracy against measured speed-up]({PLOT})",
        "",
        "What `random` has below all others is cut off.",
    ]


def _given_up(networks: list[NetworkFigures]) -> str:
    """Returns a sentence about what was trained besides, since that decided something too."""
    rows = [row for network in networks for row in network.given_up]
    if not rows:
        return ""
    rates = ", ".join(f"{rate:g}" for rate in sorted({row["rate"] for row in rows}))
    return (
        f"Besides, {len(rows)} trainings with rates of {rates} were looked at on `val` while the "
        "method and the rates were worked out: of plans that it comes to no longer, or at rates "
        "that were given up. Their rows are in the results."
    )


def _network(network: NetworkFigures) -> list[str]:
    original = network.accuracy(network.original)
    data = network.facts
    lines = [
        f"## {network.name}",
        "",
        f"The original has {share(original)} on the {len(network.labels):,} test images of "
        f"{len(np.unique(network.grouped.groups)):,} {network.by}s and takes "
        f"{network.original_ms:.4f} ms on {network.device}. {data['epochs']} epochs each; SHA-256 "
        f"of train, val, test: "
        + ", ".join(f"`{value[:12]}`" for value in data["data_sha256"].values())
        + ".",
    ]
    for wanted in dict.fromkeys(cell.wanted for cell in network.cells.values()):
        cells = [cell for cell in network.cells.values() if cell.wanted == wanted]
        lines += ["", *_budget(network, wanted, [cell for cell in cells if not cell.variant])]
    return [*lines, "", *_variants(network), *_untrained(network), *_cost(network)]


def _budget(network: NetworkFigures, wanted: float, cells: list[Cell]) -> list[str]:
    ours = next((cell for cell in cells if cell.arm == "ours"), None)
    lines = [
        f"### {network.name}, {wanted:g}x" if wanted > 1 else f"### {network.name}, not replaced",
        "",
        "| arm | measured | convolutions | rate | val | test, trained | seeds | points lost "
        "| ours minus this |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        lost = network.against(network.original, cell.hits)
        apart = ours is None or cell is ours or not cell.comparable(ours)
        lead = None if apart or ours is None else network.against(ours.hits, cell.hits)
        seeds = " / ".join(f"{share:.1%}" for share in cell.hits.mean(1))
        lines.append(
            f"| {cell.arm} | {measured(cell)} | {_counts(cell)} | {cell.rate:g} "
            f"| {cell.val:.1%} | {share(network.accuracy(cell.hits))} | {seeds} "
            f"| {points(lost)} | {points(lead) if lead else '-'} |"
        )
    return [*lines, "", *_verdict(network, wanted, ours, cells)] if ours else lines


def _verdict(network: NetworkFigures, wanted: float, ours: Cell, cells: list[Cell]) -> list[str]:
    """Returns whom ours beats, who beats ours, and whether the aim was reached."""
    said: dict[str, list[str]] = {}
    apart = []
    for cell in cells:
        if cell is ours:
            continue
        if not cell.comparable(ours):
            why = ", which found nothing faster to replace" if cell.untouched else ""
            apart.append(f"{cell.arm} ({cell.speedup:.2f}x{why})")
            continue
        lead = network.against(ours.hits, cell.hits)
        word = "more" if lead.mean > 0 else "less" if lead.mean < 0 else "exactly as"
        sure = "" if lead.clear else ", but not clearly: zero is within the interval"
        said.setdefault(f"{word} accurate {'as' if word[0] == 'e' else 'than'}", []).append(
            f"{cell.arm} ({100 * lead.mean:+.2f} points{sure})"
        )
    sentences = [f"Ours is {how} {', '.join(who)}." for how, who in said.items()]
    if apart:
        sentences.append(f"Not at equal latency, so not compared: {', '.join(apart)}.")
    aim = AIMS.get((network.name, wanted))
    if aim is not None:
        lost = 100 * network.against(network.original, ours.hits).mean
        reached = "reached" if lost <= aim else "not reached"
        if ours.speedup < wanted * (1 - TOLERANCE):
            reached = f"not judged, for ours measured {ours.speedup:.2f}x; there it is"
        sentences.append(f"The aim, at most {aim:g} points lost, is {reached}: {lost:+.2f}.")
    ahead = [c for c in cells if c is not ours and c.comparable(ours) and _beats(c, ours)]
    if ahead:
        shares = ", ".join(f"{c.arm} {c.val:.1%}" for c in ahead)
        sentences.append(
            f"On the images of `val`, by which everything was chosen, ours has {ours.val:.1%}, "
            f"{shares}."
        )
    taught = network.cells.get(("ours-labels", wanted))
    if taught is not None:
        lost = 100 * network.against(network.original, taught.hits).mean
        sentences.append(f"Taught by labels too, ours has {lost:+.2f} points lost.")
    return [" ".join(sentences)]


def _beats(first: Cell, second: Cell) -> bool:
    return bool(first.hits.mean() > second.hits.mean())


def _variants(network: NetworkFigures) -> list[str]:
    """Returns the table of everything that is done to the plans of ours, with its time."""
    cells = [cell for cell in network.cells.values() if cell.variant or cell.arm == "ours"]
    if not any(cell.variant for cell in cells):
        return []
    lines = [
        f"### {network.name}, ours chosen or trained in other ways",
        "",
        "Seconds are those of start and training on one core, the mean over the seeds; other work "
        "on the machine lengthens them. Networks of another latency are not compared with ours.",
        "",
        "| arm | wanted | measured | rate | val | test | points lost | ours minus this | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in sorted(cells, key=lambda cell: cell.wanted):
        ours = network.cells.get(("ours", cell.wanted))
        fair = ours is not None and cell is not ours and cell.comparable(ours)
        lead = points(network.against(ours.hits, cell.hits)) if ours and fair else "-"
        lines.append(
            f"| {cell.arm} | {cell.wanted:g}x | {measured(cell)} | {cell.rate:g} | {cell.val:.1%} "
            f"| {share(network.accuracy(cell.hits))} "
            f"| {points(network.against(network.original, cell.hits))} | {lead} "
            f"| {cell.seconds:.0f} |"
        )
    return [*lines, ""]


def _untrained(network: NetworkFigures) -> list[str]:
    cells = [cell for cell in network.cells.values() if not cell.variant]
    lines = [
        f"### {network.name}, before training and after its first epoch",
        "",
        "The same plans as training finds them: no labels, no training, only repairs that are "
        "solved in closed form where the arm starts with them. The first epoch is that of the "
        "whole training, at a high learning rate.",
        "",
        "| arm | wanted | measured | test, untrained | val, untrained | first epoch | end |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {cell.arm} | {cell.wanted:g}x | {measured(cell)} "
            f"| {share(network.accuracy(cell.untrained))} | {cell.start_val:.1%} "
            f"| {cell.first_val:.1%} | {cell.val:.1%} |"
            for cell in cells
        ),
        "",
    ]
    for wanted in dict.fromkeys(cell.wanted for cell in cells):
        plans = [cell for cell in cells if cell.wanted == wanted and not cell.untouched]
        if len(plans) > 2:
            end = [cell.val for cell in plans]
            start = rank_correlation([cell.start_val for cell in plans], end)
            first = rank_correlation([cell.first_val for cell in plans], end)
            lines.append(
                f"- {wanted:g}x: Spearman with the end, {len(plans)} arms: {start:.2f} untrained, "
                f"{first:.2f} after the first epoch."
            )
    return [*lines, ""]


def _cost(network: NetworkFigures) -> list[str]:
    cells = [cell for cell in network.cells.values() if not cell.variant]
    tables = "; ".join(map(_table, network.tables))
    training = [row["start_s"] + row["seconds"] for cell in cells for row in cell.trainings]
    plans: dict[str, list[float]] = {"ours": [], "the others": []}
    for cell in cells:
        who = "ours" if cell.arm == "ours" else "the others"
        plans[who] += [plan["seconds"] for plan in cell.plans]
    found = " and ".join(f"{_span(seconds)} for {who}" for who, seconds in plans.items() if seconds)
    return [
        f"Cost on one core: {tables}; a plan, measured and raced, {found}; a training "
        f"{_span(training)}. Other work on the machine lengthens these."
    ]


def _span(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.0f} to {max(seconds):.0f} s"


def _table(row: Json) -> str:
    count, seconds = row["entries"], row["seconds"]
    text = f"{count} entries of the {row['tables']} table"
    if seconds is None:
        return f"{text} (begun earlier, so not timed)"
    return f"{text} in {seconds:.0f} s ({seconds / max(1, count):.2f} s each)"


def measured(cell: Cell) -> str:
    """Returns a cell's measured speed-up, marked where it is not what was wanted."""
    low, high = min(cell.speedups), max(cell.speedups)
    text = f"{low:.2f}x" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}-{high:.2f}x"
    return text if cell.on_target else f"{text} !"


def _counts(cell: Cell) -> str:
    counts = sorted({plan["convs"] for plan in cell.plans})
    return "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def share(found: Interval) -> str:
    """Returns an accuracy, with its interval."""
    return f"{found.mean:.1%} [{found.low:.1%}, {found.high:.1%}]"


def points(found: Interval) -> str:
    """Returns a difference in points, with its interval."""
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.mean:+.2f} [{low:+.2f}, {high:+.2f}]"
