"""A matplotlib figure as a small, deterministic SVG that can stand inside a page.

matplotlib is imported when the first plot is drawn, without a display and without its global state.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, Any

from trt_layermerge.errors import MissingDependencyError
from trt_layermerge.report.palette import GRID, INK, MUTED, SURFACE, svg_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS_PER_INCH = 72
STYLE: dict[str, Any] = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.13,
    "figure.constrained_layout.w_pad": 0.13,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def draw(
    name: str, width: float, height: float, label: str, paint: Callable[[Figure], None]
) -> str:
    """Returns the SVG of what ``paint`` draws on a figure of ``width`` by ``height`` pixels.

    ``name`` makes the identifiers inside unique among the pictures of a page. The same calls give
    the same text, with one version of matplotlib.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "drawing the plots", "report") from error
    stream = StringIO()
    with style.context(["default", {**STYLE, "svg.hashsalt": name}]):
        inches = (width / POINTS_PER_INCH, height / POINTS_PER_INCH)
        figure = Figure(figsize=inches, layout="constrained")
        paint(figure)
        figure.savefig(stream, format="svg")
    return svg_picture(_body(stream.getvalue()), width, height, label)


def quiet_axes(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Gives axes their names and a grid that stays behind the data."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def note(
    axes: Axes,
    words: str,
    spot: tuple[float, float],
    offset: tuple[float, float],
    side: str,
    colour: str,
) -> None:
    """Writes a label beside a spot, ``offset`` in points, on a ground that keeps it readable."""
    axes.annotate(
        words,
        spot,
        xytext=offset,
        textcoords="offset points",
        horizontalalignment=side,
        color=colour,
        fontweight="bold",
        bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 1.0, "alpha": 0.75},
    )


def _body(svg: str) -> str:
    """Returns the drawing without head, metadata (a date), page-wide style, unused identifiers."""
    inner = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<style[^>]*>.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<!--.*?-->\n?", "", inner, flags=re.DOTALL)
    used = set(re.findall(r'["(]#([^")]+)[")]', inner))
    inner = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", inner)
    inner = inner.replace(" font-family: 'DejaVu Sans';", "")
    inner = re.sub(r' transform="rotate\(-0 [^"]*"', "", inner)
    return f'<g stroke-linejoin="round" stroke-linecap="butt">{inner.strip()}</g>'
