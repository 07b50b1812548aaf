"""Colours of pages and pictures: safe for colour-blind readers, on light and on dark.

Pictures carry the light colours as plain attributes, so that any viewer shows them, and a style
sheet that exchanges each of them where the reader prefers dark. The hues are those of M. Okabe and
K. Ito (2002); fills are the same hues, thinned.
"""

from __future__ import annotations

SURFACE = "#fefefe"
INK = "#1f2429"
MUTED = "#5b6570"
GRID = "#dfe3e8"
STONE = "#8b949e"
BLUE = "#0072b2"
ORANGE = "#c97b00"
RED = "#d55e00"
GREEN = "#00825d"
PURPLE = "#a8528a"
OLIVE = "#8a7a00"

DARK = {
    SURFACE: "#161b21",
    INK: "#e8ecf0",
    MUTED: "#a3adb8",
    GRID: "#323a43",
    STONE: "#98a2ac",
    BLUE: "#56b4e9",
    ORANGE: "#f0ab3c",
    RED: "#ff8a4a",
    GREEN: "#35c79b",
    PURPLE: "#e39cc6",
    OLIVE: "#f0e442",
}
"""The dark twin of every colour."""

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
