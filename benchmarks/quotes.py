"""Figures that stand in the documents' sentences, each from the recorded rows of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.manual.results import OURS, RIVALS, standings, verdict
from benchmarks.results import RESULTS
from benchmarks.studies.settings import ROOT
from trt_layermerge.core.jsonio import Json, read_lines

IMAGENET_IMAGES = 1_281_167
"""Training images of ILSVRC 2012."""


FIGURE = r"([\w.,–+-]*\w)"


@dataclass(frozen=True)
class Quote:
    """Words of a document with figures in them.

    Attributes:
        document: File, relative to the repository.
        words: As they stand in it, however lines are broken, with ``{}`` for each figure.
        figures: What the recorded rows say.
    """

    document: str
    words: str
    figures: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The document."""
        return ROOT / self.document

    def found(self, text: str) -> re.Match[str]:
        """Returns where a document has these words, with whatever figures.

        Raises:
            ValueError: If it does not have them, or more than once.
        """
        parts = (re.escape(part).replace(r"\ ", r"\s+") for part in self.words.split("{}"))
        matches = list(re.finditer(FIGURE.join(parts), text))
        if len(matches) != 1:
            raise ValueError(f"{self.document} has {len(matches)} times: {self.words}")
        return matches[0]

    def updated(self, text: str) -> str:
        """Returns the document with the recorded figures. Raises ``ValueError`` as ``found``."""
        match = self.found(text)
        for number in range(len(self.figures), 0, -1):
            start, end = match.span(number)
            text = text[:start] + self.figures[number - 1] + text[end:]
        return text


def quotes() -> Iterator[Quote]:
    """Yields every quote, made from the recorded figures."""
    yield demo(rows_of("glyphs-demo"))
    yield from beside_others()
    yield search_time({row["network"]: row for row in rows_of("search-time")})
    yield from speed({row["name"]: row["ms"] for row in rows_of("speed")})
    yield from tolerances(rows_of("tolerances"))
    yield from int8({row["network"]: row for row in rows_of("int8-latency")})


def rows_of(name: str) -> list[Json]:
    """Returns the recorded rows of a page."""
    return read_lines(RESULTS / "data" / f"{name}.jsonl", name)[1]


def demo(rows: list[Json]) -> Quote:
    """Returns what README.md says about the demo's plan."""
    figures = [f"{100 * rows[0]['test_original']:.1f}"]
    for start in ("repair", "original"):
        arms = [row for row in rows if (row["start"], row["epochs"]) == (start, 100)]
        shares = [100 * row["test_after"] for row in arms]
        figures += [f"{min(shares):.1f}", f"{max(shares):.1f}"]
    header = read_lines(RESULTS / "data" / "glyphs-demo.jsonl", "glyphs-demo")[0]
    figures.insert(3, f"{header['measured_speedup']:.2f}")
    words = (
        "ResNet-20 went from {} % to {} to {} % on the 1,000 test images at a measured {}x (three "
        "seeds), and from the paper's start to {} to {} %"
    )
    return Quote("README.md", words, tuple(figures))


def beside_others() -> Iterator[Quote]:
    """Yields what README.md says about points lost beside other methods."""
    for each in standings():
        shown = (OURS, *RIVALS[:2])
        lost = (
            f"{100 * each.lost[arm].mean:+.2f}" if arm == OURS or arm in each.lead else "none"
            for arm in shown
        )
        yield Quote("README.md", f"| {each.title} | {{}} | {{}} | {{}} |", tuple(lost))
    for rival, name in zip(RIVALS, ("the paper's method", "removals alone"), strict=False):
        words = f"{name}: fewer in {{}} of {{}} cases ({{}} clearly), more in {{}} ({{}} clearly)"
        cases, fewer, clearly, *more = verdict(rival)
        yield Quote("README.md", words, (fewer, cases, clearly, *more))


def search_time(rows: dict[str, Json]) -> Quote:
    """Returns what docs/own-network.md says about the time of a search."""
    row = rows["mobilenet_v2"]
    words = (
        "MobileNetV2 at 224 pixels came to a measured plan in {} minutes on two cores, with up to "
        "{} GB of memory"
    )
    minutes = sum(row["seconds"].values()) / 60
    return Quote("docs/own-network.md", words, (f"{minutes:.1f}", f"{row['peak_gb']:.1f}"))


def speed(ms: dict[str, float]) -> Iterator[Quote]:
    """Yields what docs/data.md says about decoding."""
    small = ms["JPEG of 500x375 to 224x224"]
    large, whole = ms["JPEG of 3000x2000 to 224x224"], ms["the same, decoded whole"]
    epoch = small * IMAGENET_IMAGES / 60_000
    words = (
        "a JPEG of 500x375 takes {} ms of processor time to become 224x224, so ImageNet's "
        "training images take {} minutes of one core an epoch"
    )
    yield Quote("docs/data.md", words, (f"{small:.1f}", f"{epoch:.0f}"))
    words = "A photo of 3000x2000 takes {} ms instead of {},"
    yield Quote("docs/data.md", words, (f"{large:.0f}", f"{whole:.0f}"))


def tolerances(rows: list[Json]) -> Iterator[Quote]:
    """Yields what docs/deploying.md says about the limits of ``verify.py``."""
    faults = ("half the contrast", "red and blue swapped", "shifted by a pixel")
    named = "half the contrast, swapped channels or a shifted image"
    for words, precisions, kinds in (
        ("half precision beside single | fp16", ("fp16",), ("half beside single",)),
        ("order of summation | int8", ("int8",), ("order of summation",)),
        ("float16 instead of float32 | int8", ("int8",), ("remainder in fp16",)),
        ("the same, probabilities | int8", ("int8",), ("the same behind a softmax",)),
        (f"{named} | fp32, fp16", ("fp32", "fp16"), faults),
        (f"{named} | int8", ("int8",), faults),
    ):
        mine = [row for row in rows if row["precision"] in precisions and row["what"] in kinds]
        found = sorted({row["beyond"] for row in mine})
        beyond = "–".join(map(str, found if len(found) < 2 else (found[0], found[-1])))
        figures = (f"{max(row['largest'] for row in mine):.2g}", beyond, str(mine[0]["pairs"]))
        yield Quote("docs/deploying.md", f"{words} | {{}} | {{}} of {{}} |", figures)


def int8(rows: dict[str, Json]) -> Iterator[Quote]:
    """Yields what calib/README.md says about int8 on a CPU."""
    resnet, mobilenet = rows["resnet20"], rows["mobilenet_v2"]
    names = ("int8_ms", "fp32_ms")
    words = "took {} ms instead of {} (ResNet-20) and {} ms instead of {} (MobileNetV2) on one core"
    figures = tuple(f"{row[name]:.2f}" for row in (resnet, mobilenet) for name in names)
    yield Quote("calib/README.md", words, figures)
    words = (
        "own ways with them took {} ms for that ResNet-20, and where the rest is float16 they "
        "moved its outputs by {} %, computing them as written by {} %"
    )
    moved = (f"{100 * resnet[name]:.1f}" for name in ("moved_own", "moved"))
    yield Quote("calib/README.md", words, (f"{resnet['int8_own_ms']:.2f}", *moved))
