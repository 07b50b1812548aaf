"""``candidates.jsonl``: what may stand in the place of a network's blocks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import damage, read_lines, write_lines
from trt_layermerge.kinds import Limits, judged_candidates
from trt_layermerge.session.settings import SearchSection

FILE = "candidates.jsonl"


def write_candidates(
    folder: Path, graph: LayerGraph, section: SearchSection
) -> tuple[Candidate, ...]:
    """Writes and returns every candidate that can be merged; the file tells why others cannot.

    Args:
        folder: Where to.
        graph: The traced network.
        section: Rules, kinds and limits.

    Raises:
        DeviceError: If the file cannot be written.
    """
    limits = Limits(**section.limits.model_dump())
    judged = list(judged_candidates(graph, section.rules, limits, section.kinds))
    refused = Counter(why for _, why in judged if why is not None)
    header = {"rules": section.rules, "offered": len(judged), "refused": dict(refused)}
    usable = tuple(c for c, why in judged if why is None)
    write_lines(folder / FILE, "candidates", header, (c.to_json() for c in usable))
    return usable


def load_candidates(folder: Path) -> tuple[Candidate, ...]:
    """Returns what ``write_candidates`` wrote. Raises ``UsageError`` and ``CorruptInputError``."""
    path = folder / FILE
    _, rows = read_lines(path, "candidates")
    with damage(path):
        return tuple(Candidate.from_json(row) for row in rows)
