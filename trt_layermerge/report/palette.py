"""Colours of pages and pictures: safe for colour-blind readers, on light and on dark.

Pictures carry the light colours as plain attributes, so that any viewer shows them, and a style
sheet that exchanges each of them where the reader prefers dark. The hues are those of M. Okabe and
K. Ito (2002); fills are the same hues, thinned.
"""

from __future__ import annotations

from html import escape

SURFACE = "#fefefe"
INK = "#1f2429"
MUTED = "#5b6570"
GRID = "#dfe3e8"
STONE = "#8b949e"
BLUE = "#0072b2"
ORANGE = "#c97b00"
RED = "#d55e00"
GREEN = "#00825d"

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
}
"""The dark twin of every colour."""

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
PICTURE_CLASS = "tlm-picture"


def _exchange(light: str, dark: str) -> str:
    rules = []
    for name in ("fill", "stroke"):
        rules.append(f'[{name}="{light}"]{{{name}:{dark}}}')
        rules.append(f'[style*="{name}: {light}"]{{{name}:{dark} !important}}')
    return "".join(rules)


PICTURE_STYLE = (
    "<style>@media screen and (prefers-color-scheme: dark){"
    + "".join(_exchange(light, dark) for light, dark in DARK.items())
    + "}</style>"
)
"""Exchanges every light colour for its dark twin, on dark screens only.

No rule names an ancestor: what ``<use>`` repeats has none that a style sheet could see.
"""


def svg_picture(body: str, width: float, height: float, label: str) -> str:
    """Returns a complete SVG picture with its own surface, style and spoken label."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'class="{PICTURE_CLASS}" role="img" '
        f'aria-label="{escape(label)}" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="{escape(FONTS)}">{PICTURE_STYLE}'
        f'<rect width="{width:g}" height="{height:g}" rx="6" fill="{SURFACE}"/>{body}</svg>\n'
    )
