"""Which candidate stands at every place of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import damage, read_json, write_json
from trt_layermerge.errors import UsageError

FIGURES = ("measured_ms", "measured_speedup", "original_ms")
"""Notes that are numbers, or None."""


@dataclass(frozen=True)
class MergePlan:
    """One candidate for every unit of a network, in order and without gaps.

    Attributes:
        candidates: The candidates, ordered by block; untouched units are candidates too.
        latency_ms: Predicted latency of the whole network, or None.
        score: Value of the objective, or None.
        budget_ms: The latency it was solved for, or None.
        notes: Measured latency, hashes, seed and versions, for ``plan.json``.
        channels: Which channels of narrower streams remain, rising; those with the largest weights
            of a stream that is not named.
    """

    candidates: tuple[Candidate, ...]
    latency_ms: float | None = None
    score: float | None = None
    budget_ms: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def of(graph: LayerGraph, candidates: Iterable[Candidate]) -> MergePlan:
        """Returns the plan that applies exactly these candidates and keeps everything else.

        Raises:
            UsageError: If two candidates overlap, or one is not within the graph.
        """
        chosen = sorted(candidates, key=lambda c: c.block)
        filled: list[Candidate] = []
        position = 0
        for candidate in chosen:
            if candidate.block.start < position:
                raise UsageError(f"two candidates overlap at unit {candidate.block.start}")
            if candidate.block.end > len(graph.units):
                raise UsageError(
                    f"unit {candidate.block.end - 1} is not in a graph of {len(graph.units)} units"
                )
            filled += [original_candidate(graph, i) for i in range(position, candidate.block.start)]
            filled.append(candidate)
            position = candidate.block.end
        filled += [original_candidate(graph, i) for i in range(position, len(graph.units))]
        return MergePlan(tuple(filled))

    @property
    def widths(self) -> dict[str, int]:
        """Channels of the streams that are narrower than they were. Raises ``UsageError``."""
        found: dict[str, int] = {}
        for candidate in self.candidates:
            for name, width in candidate.widths:
                if found.setdefault(name, width) != width:
                    raise UsageError(
                        f"the stream {name} is {found[name]} channels wide in one place of the "
                        f"plan and {width} in another; let all candidates agree (core.streams)"
                    )
        return found

    @property
    def changed(self) -> tuple[Candidate, ...]:
        """The candidates that replace something."""
        return tuple(c for c in self.candidates if not c.original)

    @property
    def convs(self) -> tuple[ConvSpec, ...]:
        """Every convolution of the chain once merged, surviving projections included."""
        costs = (spec for candidate in self.candidates for spec in candidate.costs)
        return tuple(spec for spec in costs if isinstance(spec, ConvSpec))

    @property
    def conv_count(self) -> int:
        """Number of convolutions of the chain once merged."""
        return len(self.convs)

    @property
    def activation_count(self) -> int:
        """Activations of the chain once merged."""
        return sum(c.activations for c in self.candidates)

    def save(self, path: Path) -> None:
        """Writes ``plan.json``."""
        body = {
            "candidates": [c.to_json() for c in self.candidates],
            "predicted_ms": self.latency_ms,
            "score": self.score,
            "budget_ms": self.budget_ms,
            "notes": dict(self.notes),
            **({"channels": dict(self.channels)} if self.channels else {}),
        }
        write_json(path, "plan", body)

    @staticmethod
    def load(path: Path) -> MergePlan:
        """Returns the plan of a file.

        Raises:
            UsageError: If there is no such file.
            CorruptInputError: If it is damaged.
        """
        body = read_json(path, "plan")
        with damage(path):
            return MergePlan(
                candidates=tuple(Candidate.from_json(c) for c in body["candidates"]),
                latency_ms=_number(body["predicted_ms"]),
                score=_number(body["score"]),
                budget_ms=_number(body["budget_ms"]),
                notes={k: _number(v) if k in FIGURES else v for k, v in body["notes"].items()},
                channels={
                    str(name): tuple(int(c) for c in kept)
                    for name, kept in body.get("channels", {}).items()
                },
            )


def _number(value: Any) -> float | None:
    """Returns a finite number, or None. Raises ``ValueError``."""
    if value is None:
        return None
    if isinstance(value, (int, float)) and isfinite(value):
        return float(value)
    raise ValueError(f"{value!r:.60} is no number")
