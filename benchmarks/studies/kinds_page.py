"""``docs/results/kinds.md``: all kinds against fewer of them and against channel pruning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.studies.choosing import TOLERANCE
from benchmarks.studies.figures import ARM_COURSES, NetworkFigures
from benchmarks.studies.glyphs_page import ABOUT, made_by, measured, points, read_glyphs, share
from benchmarks.studies.statistics import SAMPLES
from trt_layermerge.core.jsonio import Json

LEAD = "all-kinds"
"""Which arm the others are held against."""


def kinds_page(path: Path) -> str:
    """Returns the page of a result file, as Markdown."""
    header, networks, rows = read_glyphs(path)
    arms = dict.fromkeys(row["arm"] for row in rows if row["kind"] == "plan")
    rates = ", ".join(f"{rate:g}" for rate in header["settings"]["rates"])
    lines = [
        "# Depth, width and rank together, and channel pruning",
        "",
        made_by("benchmarks.studies.glyphs", header, rows)
        + " Results: `data/kinds.jsonl`; this page: `python -m benchmarks.studies.report`.",
        "",
        "Plans, measurements and trainings as in the [glyph study](glyphs.md), but every arm is "
        "taught by labels and the original's answers in equal shares, and those that race do so "
        f"by the same. Each arm chose one learning rate for a network among {rates}, the best mean "
        "accuracy on `val` over its speed-ups with the first seed. Networks of Torch-Pruning have "
        f"channels in multiples of 8; all their widths were measured, and of those within "
        f"{TOLERANCE:.0%} of the wanted latency the one that keeps most was taken, else the "
        "nearest. `!` marks what is farther away in the end; compared is what measures within "
        f"{2 * TOLERANCE:.0%} of each other. Intervals are 95 % of {SAMPLES:,} bootstrap "
        "replicates over fonts and seeds, paired by image; with one seed they hold nothing of "
        "the seeds. Tables and plans come from one seed.",
        "",
        "| arm | what it is |",
        "|---|---|",
        *(f"| {arm} | {ABOUT[arm]} |" for arm in arms),
    ]
    tested = {row["network"] for row in rows if row["kind"] == "test"}
    finished = [network for network in networks if network.name in tested]
    if finished:
        lines += ["", "## Who is ahead", "", *_outcome(finished)]
    for network in finished:
        lines += ["", *_network(network)]
    for network in networks:
        if network not in finished:
            lines += ["", *_unfinished([row for row in rows if row.get("network") == network.name])]
    return "\n".join(lines) + "\n"


def _outcome(networks: list[NetworkFigures]) -> Iterator[str]:
    """Yields a line for each rival: in how many cases all kinds are more accurate, or less."""
    rivals = dict.fromkeys(arm for n in networks for arm, _ in n.cells if arm != LEAD)
    for rival in rivals:
        both = [
            (network, network.cells[LEAD, wanted], cell)
            for network in networks
            for (arm, wanted), cell in network.cells.items()
            if arm == rival and (LEAD, wanted) in network.cells
        ]
        fair = [(n, lead, cell) for n, lead, cell in both if cell.comparable(lead)]
        leads = [network.against(lead.hits, cell.hits) for network, lead, cell in fair]
        ahead = [lead for lead in leads if lead.mean > 0]
        behind = [lead for lead in leads if lead.mean < 0]
        yield (
            f"- `{rival}`: all kinds are more accurate in {len(ahead)} of {len(fair)} cases "
            f"({sum(lead.clear for lead in ahead)} clearly), less in {len(behind)} "
            f"({sum(lead.clear for lead in behind)} clearly); {len(both) - len(fair)} are not "
            "equally fast."
        )


def _network(network: NetworkFigures) -> Iterator[str]:
    yield f"## {network.name}"
    yield ""
    yield (
        f"The original has {share(network.accuracy(network.original))} on {network.by}s of `test` "
        f"and takes {network.original_ms:.4f} ms on {network.device}; "
        f"{network.facts['epochs']} epochs."
    )
    yield ""
    yield (
        "| wanted | arm | measured | changes | rate | val | test | seeds | points lost "
        "| all kinds minus this |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for (arm, wanted), cell in network.cells.items():
        lead = network.cells.get((LEAD, wanted))
        fair = lead is not None and lead is not cell and cell.comparable(lead)
        ahead = points(network.against(lead.hits, cell.hits)) if lead and fair else "-"
        yield (
            f"| {wanted:g}x | {arm} | {measured(cell)} | {_changes(cell.plans[0])} | {cell.rate:g} "
            f"| {cell.val:.1%} | {share(network.accuracy(cell.hits))} | {len(cell.hits)} "
            f"| {points(network.against(network.original, cell.hits))} | {ahead} |"
        )


def _unfinished(rows: list[Json]) -> Iterator[str]:
    """Yields what is known of a network whose `test` images were not opened yet: all trainings."""
    yield f"## {rows[0]['network']}, not finished"
    yield ""
    latencies = [row for row in rows if row["kind"] == "latency"]
    yield (
        "Not all that is due was trained, so `test` stays closed and nothing is claimed. Below is "
        "every training so far, by the images of `val`, by which rates are chosen too. Speed-ups "
        "are those of the last measurement"
        + (
            f", in which the original took {latencies[-1]['original_ms']:.4f} ms"
            if latencies
            else ""
        )
        + "; in brackets, of the choice. They are measured again when a plan is added."
    )
    yield ""
    yield "| wanted | arm | measured | changes | rate | seed | val before | val |"
    yield "|---|---|---|---|---|---|---|---|"
    together = {row["plan"]: row["speedup"] for row in latencies}
    plans = [row for row in rows if row["kind"] == "plan"]
    for plan in sorted(plans, key=lambda plan: (plan["speedup"], plan["arm"])):
        known = together.get(plan["plan"])
        speed = f"{known:.2f}x" if known else f"({plan['first_speedup']:.2f}x)"
        named = f"| {plan['speedup']:g}x | {plan['arm']} | {speed} | {_changes(plan)}"
        trained = [
            row
            for row in rows
            if row["kind"] == "training"
            and (row["plan"], row["course"]) == (plan["plan"], ARM_COURSES[plan["arm"]])
        ]
        for row in trained:
            yield (
                f"{named} | {row['rate']:g} | {row['seed']} | {row['start_val']:.1%} "
                f"| {row['val']:.1%} |"
            )
        if not trained:
            yield f"{named} | - | - | - | not trained yet |"


def _changes(plan: Json) -> str:
    """Returns how many blocks a plan changes, by kind; or how many channels go."""
    if "pruned" in plan:
        return f"ratio {plan['pruned']['ratio']:.2f}"
    kinds = [candidate["kind"] for candidate in plan["candidates"]]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
