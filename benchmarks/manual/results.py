"""``docs/results/index.md``: what was measured, and how it stands beside other methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.manual.words import table
from benchmarks.results import RESULTS
from benchmarks.studies.figures import Cell, NetworkFigures
from benchmarks.studies.glyphs_page import points, read_glyphs
from benchmarks.studies.statistics import Interval

OURS, RIVALS = "ours", ("paper", "layer", "depth", "random")
NAMES = {"resnet20": "ResNet-20", "mobilenet_v2": "MobileNetV2"}

HEAD = """\
# What was measured

Every figure is recorded in `docs/results/data` by a script of `benchmarks`, and every page is made
of what is recorded. Where nothing was recorded, nothing is claimed.

## Beside other methods

Points of accuracy that two small networks for letters and digits lose on test images, with 95 %
intervals. Each method has a plan of the same measured latency, trained with the same images, epochs
and distillation.
"""

METHODS = """\
- **paper**: LayerMerge as published (ICML 2024), and **depth**, its predecessor (ICML 2023).
- **layer**: only whole convolutions or branches are removed, with our scores and our repair.
- **random**: plans drawn blindly at the same latency.
- (…): not at the latency of ours, so not compared.
"""

CLEARLY = """\
*Clearly*: zero is outside of the interval of the difference, which is paired by image.
[Where ours is not ahead, and why](glyphs.md#where-ours-is-not-ahead-and-why).
"""

NO_PRUNING = """\
Not there: narrower blocks, low rank and channel pruning (Torch-Pruning). They have [a study of
their own](kinds.md), in which labels teach too.
"""

PAGES: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (
    (
        "Accuracy",
        (
            ("glyphs", "All of the table above: plans, seeds, what else was tried, and why"),
            ("kinds", "All kinds of candidates, and Torch-Pruning's networks"),
            ("glyphs-demo", "The network that `make demo` compresses, trained in several ways"),
            ("post-training", "Without labels and without fine-tuning, in seconds"),
            ("importance", "Two ways to score a block, and whether scores add up"),
            ("int8", "What int8 costs, and which layers stay in float"),
            ("ddpm", "A diffusion model, trained by a loop of its own"),
        ),
    ),
    (
        "Latency and time",
        (
            ("latency-prediction", "How well whole networks are predicted, four networks at 224"),
            ("search-time", "How long it takes to a plan, at 224"),
            ("int8-latency", "Why int8 is not faster on a CPU"),
            ("loading", "Whether decoding images keeps up with training"),
            ("speed", "Each piece of the program by itself"),
        ),
    ),
    (
        "What is taken, and whether it is right",
        (
            ("../coverage", "Networks of timm and torchvision: how much of each is in reach"),
            ("onnx-files", "Files of ONNX that others made"),
            ("fuzz", "Thousands of networks drawn at random"),
            ("engines", "Engines built without a GPU"),
            ("tolerances", "How far right and wrong outputs of a bundle lie apart"),
        ),
    ),
)


@dataclass(frozen=True)
class Standing:
    """Ours beside others at one wanted speed-up of one network.

    Attributes:
        network: Its name.
        wanted: The speed-up.
        lost: Accuracy lost to the original, by arm.
        lead: What ours is ahead by, of the arms at the same latency.
    """

    network: str
    wanted: float
    lost: dict[str, Interval]
    lead: dict[str, Interval]

    @property
    def title(self) -> str:
        """Network and speed-up."""
        return f"{NAMES.get(self.network, self.network)}, {self.wanted:g}x"


@cache
def standings() -> tuple[Standing, ...]:
    """Returns what is recorded of every network and speed-up."""
    _, networks, _ = read_glyphs(RESULTS / "data" / "glyphs.jsonl")
    return tuple(standing for network in networks for standing in _of(network))


def _of(network: NetworkFigures) -> Iterator[Standing]:
    cells: dict[float, dict[str, Cell]] = {}
    for cell in network.cells.values():
        if not cell.variant:
            cells.setdefault(cell.wanted, {})[cell.arm] = cell
    for wanted, arms in cells.items():
        ours = arms.get(OURS)
        if ours is None or wanted <= 1:
            continue
        lost = {arm: network.against(network.original, cell.hits) for arm, cell in arms.items()}
        lead = {
            arm: network.against(ours.hits, cell.hits)
            for arm, cell in arms.items()
            if cell is not ours and cell.comparable(ours)
        }
        yield Standing(network.name, wanted, lost, lead)


def verdict(rival: str) -> tuple[str, ...]:
    """Returns in how many cases ours loses fewer points than a rival, and in how many more.

    All cases at equal latency; fewer; of these clearly; more; of these clearly.

    Args:
        rival: The other arm.
    """
    leads = [standing.lead[rival] for standing in standings() if rival in standing.lead]
    ahead, behind = [x for x in leads if x.mean > 0], [x for x in leads if x.mean < 0]
    counts = (leads, ahead, [x for x in ahead if x.clear], behind, [x for x in behind if x.clear])
    return tuple(str(len(found)) for found in counts)


def results_page() -> str:
    """Returns the page."""
    arms = dict.fromkeys(arm for standing in standings() for arm in standing.lost)
    rivals = sorted((arm for arm in arms if arm != OURS), key=_rank)
    rows = [(s.title, *(_lost(s, arm) for arm in (OURS, *rivals))) for s in standings()]
    parts = [HEAD, table(("points lost", f"**{OURS}**", *rivals), rows), "", METHODS]
    head = ("ours beside", "cases", "fewer points lost", "clearly", "more lost", "clearly")
    parts += [table(head, [(rival, *verdict(rival)) for rival in rivals]), "", CLEARLY]
    parts += ["![Accuracy against measured speed-up](glyphs.svg)", ""]
    parts += [NO_PRUNING]
    for title, pages in PAGES:
        parts += [f"## {title}", "", *(_entry(*page) for page in pages), ""]
    return "\n".join(parts).rstrip() + "\n"


def _rank(arm: str) -> int:
    return RIVALS.index(arm) if arm in RIVALS else len(RIVALS)


def _lost(standing: Standing, arm: str) -> str:
    if arm not in standing.lost:
        return "–"
    text = points(standing.lost[arm])
    return text if arm == OURS or arm in standing.lead else f"({text})"


def _entry(page: str, words: str) -> str:
    return f"- [{words}]({page}.md)"
