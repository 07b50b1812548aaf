"""Plots of the studies as SVG, the same bytes for the same results and matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from benchmarks.studies.figures import Cell, NetworkFigures
from benchmarks.studies.glyphs_page import read_glyphs
from benchmarks.studies.importance_page import plan_points

STYLES = {
    "ours": ("#0b6e4f", "o"),
    "paper": ("#c1440e", "s"),
    "depth": ("#8d6b94", "v"),
    "layer": ("#1f5fa8", "^"),
    "random": ("#7a7a7a", "x"),
    "ours-post-training": ("#4fb286", "P"),
    "ours-labels": ("#2e4a3f", "D"),
}
OTHER = ("#c9a227", "d")


def glyphs_plot(path: Path) -> str:
    """Returns accuracy on ``test`` against measured speed-up, a panel a network.

    Points are means over seeds with their 95 % intervals, small marks the single seeds. Variants of
    ours without a style of their own are left to the tables. What `random` has below all others is
    cut off.
    """
    _, networks, _ = read_glyphs(path)
    figure, axes = _panels(len(networks))
    for axis, network in zip(axes, networks, strict=True):
        original = 100 * float(network.original.mean())
        axis.axhline(original, color="black", lw=0.8, ls="--", label="original")
        for arm in dict.fromkeys(arm for arm, _ in network.cells):
            cells = [cell for cell in network.cells.values() if cell.arm == arm]
            if cells[0].variant and arm not in STYLES:
                continue
            _draw_arm(axis, network, arm, sorted(cells, key=lambda cell: cell.speedup))
        _leave_below(axis, network)
        axis.set_title(network.name)
        axis.set_xlabel("measured speed-up of the whole network")
        axis.set_ylabel("accuracy on test, %")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return _svg(figure)


def _draw_arm(axis: Any, network: NetworkFigures, arm: str, cells: list[Cell]) -> None:
    colour, marker = STYLES.get(arm, OTHER)
    found = [network.accuracy(cell.hits) for cell in cells]
    means = [100 * interval.mean for interval in found]
    spread = [
        [100 * (i.mean - i.low) for i in found],
        [100 * (i.high - i.mean) for i in found],
    ]
    x = [cell.speedup for cell in cells]
    axis.errorbar(x, means, spread, color=colour, marker=marker, ms=6, lw=1, capsize=2, label=arm)
    for cell in cells:
        shares = 100 * cell.hits.mean(1)
        axis.scatter([cell.speedup] * len(shares), shares, s=6, color=colour, alpha=0.6)


def _leave_below(axis: Any, network: NetworkFigures) -> None:
    """Ends the axis where the lowest searched arm ends: blind draws may be worse by far."""
    found = [(c.arm, network.accuracy(c.hits)) for c in network.cells.values()]
    searched = [100 * interval.low for arm, interval in found if arm != "random"]
    if searched and any(100 * interval.low < min(searched) for _, interval in found):
        highest = max(100 * interval.high for _, interval in found)
        axis.set_ylim(min(searched) - 1, highest + 1)


def importance_plot(path: Path) -> str:
    """Returns joint against summed losses of plans, a panel a network."""
    points = plan_points(path)
    figure, axes = _panels(len(points))
    for axis, (name, (summed, joint)) in zip(axes, points.items(), strict=True):
        axis.scatter(summed, joint, s=14, color=STYLES["ours"][0])
        end = float(max(summed.max(), joint.max()))
        axis.plot([0, end], [0, end], color="black", lw=0.8, ls="--")
        axis.set_title(name)
        axis.set_xlabel("sum of single KL, nats")
        axis.set_ylabel("KL of the whole plan, nats")
        axis.grid(alpha=0.3)
    return _svg(figure)


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "studies"
    figure = Figure(figsize=(5.2 * count, 4.0), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)
    return figure, list(axes[0])


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
