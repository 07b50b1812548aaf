"""What ``nvidia-smi`` tells of a discrete GPU, all from one question.

Names of the fields are those of its ``--help-query-gpu``. On a Jetson it tells nothing useful.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Callable, Mapping, TypeVar

from trt_layermerge.measure.agent.sources import Reading, Sources

T = TypeVar("T")

_REASONS = "clocks_throttle_reasons.active"
_NEW_REASONS = "clocks_event_reasons.active"
FIELDS = ("clocks.gr", "clocks.max.gr", "temperature.gpu", "power.draw", _REASONS)

_SLOWED_BY = 0x04 | 0x08 | 0x20 | 0x40 | 0x80
"""Bits of the power cap, the hardware slowdown, both temperature limits and the power brake."""


@dataclass(frozen=True)
class Gpu:
    """What was said of one GPU, by field, or the problem why nothing was."""

    fields: Mapping[str, str]
    problem: str = ""

    def number(self, field: str) -> Reading[float]:
        """Returns a field as a number."""
        return self._read(field, float)

    def throttled(self) -> Reading[bool]:
        """Returns whether power or temperature held the clocks down when asked."""
        return self._read(_REASONS, lambda text: bool(int(text, 16) & _SLOWED_BY))

    def _read(self, field: str, parse: Callable[[str], T]) -> Reading[T]:
        text = self.fields.get(field, self.problem)
        try:
            return Reading(parse(text))
        except ValueError:
            return Reading(None, self.problem or f"nvidia-smi says {field} = {text}")


def query(sources: Sources) -> Gpu:
    """Returns what is known of the GPU that CUDA uses."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    chosen = ("-i", device) if device.startswith("GPU-") else ()
    answer = sources.ask(_command(FIELDS, chosen))
    if answer.code and "not a valid field" in answer.output + answer.errors:
        renamed = tuple(_NEW_REASONS if name == _REASONS else name for name in FIELDS)
        answer = sources.ask(_command(renamed, chosen))
    if not answer.worked:
        return Gpu({}, f"nvidia-smi does not tell: {answer.words}")
    lines = answer.output.splitlines()
    if len(lines) != 1:
        return Gpu(
            {}, f"{len(lines)} GPUs: set CUDA_VISIBLE_DEVICES to the UUID of one (nvidia-smi -L)"
        )
    values = [value.strip() for value in lines[0].split(",")]
    if len(values) != len(FIELDS):
        return Gpu({}, f"nvidia-smi answered in an unknown form: {lines[0][:80]}")
    return Gpu(dict(zip(FIELDS, values)))


def _command(fields: tuple[str, ...], chosen: tuple[str, ...]) -> tuple[str, ...]:
    wanted = f"--query-gpu={','.join(fields)}"
    return ("nvidia-smi", *chosen, wanted, "--format=csv,noheader,nounits")
