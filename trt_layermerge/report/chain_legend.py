"""The legend of the picture of the chain."""

from __future__ import annotations

from trt_layermerge.report.chain_shapes import addition, box, dot, line, skip_path, text
from trt_layermerge.report.palette import BLUE, INK, ORANGE, RED, STONE

LEGEND_HEIGHT = 46
MINIMUM_WIDTH = 800


def legend() -> str:
    """Returns two lines of samples with their meaning."""
    first, second = 16, 36
    parts = [
        box(16, first, 22, 14, STONE) + _words(44, first, "untouched"),
        box(122, first, 22, 14, BLUE) + _words(150, first, "kept, merged exactly"),
        box(284, first, 22, 14, ORANGE) + _words(312, first, "replaced by a fitted conv"),
        box(470, first, 22, 14, RED, crossed=True) + _words(498, first, "conv removed"),
        _words(592, first, "dw: depthwise · /2: stride"),
        dot(27, second, kept=True) + _words(44, second, "activation"),
        dot(133, second, kept=False) + _words(150, second, "activation removed"),
        skip_path(284, 306, second + 5, second - 5, True, True)
        + addition(306, second + 4)
        + _words(316, second, "residual"),
        line(481, second - 8, 481, second + 8, INK, 1.6, "2 4") + _words(498, second, "barrier"),
        _words(592, second, "height of a box: channels"),
    ]
    return "".join(parts)


def _words(x: float, middle: float, words: str) -> str:
    return text(x, middle + 4, words, anchor="start", size=11)
