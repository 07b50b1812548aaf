"""The few shapes that the picture of the chain is made of, each as a string of SVG."""

from __future__ import annotations

from html import escape

from trt_layermerge.report.palette import INK, MUTED, RED, SURFACE

GAP = 16
CORNER = 7


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "middle",
    size: float = 10.5,
    fill: str = MUTED,
    bold: bool = False,
) -> str:
    """Returns a line of escaped text."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size:g}" '
        f'fill="{fill}"{weight}>{escape(words)}</text>'
    )


def line(
    x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1.2, dashes: str = ""
) -> str:
    """Returns a straight line."""
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{stroke}" '
        f'stroke-width="{width:g}"{dash}/>'
    )


def box(
    x: float, middle: float, width: float, height: float, colour: str, crossed: bool = False
) -> str:
    """Returns a box around a middle line; a crossed one is hollow, dashed and struck through."""
    top = middle - height / 2
    frame = f'x="{x:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="3"'
    ground = f'<rect {frame} fill="{SURFACE}"/>'
    if crossed:
        bottom = middle + height / 2
        return (
            f'{ground}<rect {frame} fill="none" stroke="{colour}" stroke-width="1.4" '
            f'stroke-dasharray="4 3"/>{line(x, bottom, x + width, top, colour, 1.1)}'
        )
    return (
        f'{ground}<rect {frame} fill="{colour}" fill-opacity="0.2" stroke="{colour}" '
        'stroke-width="1.6"/>'
    )


def tint(left: float, top: float, right: float, bottom: float, colour: str) -> str:
    """Returns the faint column that ties a block to what it became."""
    return (
        f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" '
        f'rx="5" fill="{colour}" fill-opacity="0.1"/>'
    )


def dot(x: float, y: float, kept: bool) -> str:
    """Returns an activation: a full dot where it stays, a hollow ring where it is removed."""
    fill, stroke = (INK, INK) if kept else (SURFACE, RED)
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="3.8" fill="{fill}" stroke="{stroke}" '
        'stroke-width="1.6"/>'
    )


def addition(x: float, y: float) -> str:
    """Returns a plus sign in a circle."""
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="4.6" fill="{SURFACE}" stroke="{INK}"/>'
        f"{line(x - 2.6, y, x + 2.6, y, INK, 1.1)}{line(x, y - 2.6, x, y + 2.6, INK, 1.1)}"
    )


def skip_path(
    left: float, right: float, line_y: float, ridge_y: float, begins: bool, ends: bool
) -> str:
    """Returns a path from the line over a ridge back to the line, open where it goes on."""
    away = CORNER if ridge_y < line_y else -CORNER
    corner = f"Q{left:g} {ridge_y:g} {left + CORNER:g} {ridge_y:g}"
    path = (
        f"M{left:g} {line_y:g}V{ridge_y + away:g}{corner}" if begins else f"M{left:g} {ridge_y:g}"
    )
    path += (
        f"H{right - CORNER:g}Q{right:g} {ridge_y:g} {right:g} {ridge_y + away:g}V{line_y:g}"
        if ends
        else f"H{right:g}"
    )
    return f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.1"/>'
