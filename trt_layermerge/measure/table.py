"""Specs → latency table: each spec measured once, what fails noted, what is known not repeated.

Specs take turns run by run, not burst by burst: a spec then finds its weights in far caches or in
memory, as it does inside a network, rather than where its own last run left them. That its maps are
cold too, and in the outside world's layout, is what ``measure.fit`` corrects.

So the specs of a chunk are done at the same time, and are stored then: a row each. What a kill
costs is the work on one chunk, never a finished row: about a second (eight of ResNet-18's layers at
224 pixels on one core take 1.1 s), and 4 s where runs take up to 33 ms (``LIMIT_MS``).

A sentinel network in each chunk, to divide out a drifting clock, was tried and left out: even on a
busy host, repeated tables hardly came closer to each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_layermerge.backends import Backend
from trt_layermerge.core.conv import ConvSpec, PieceSpec, Spec
from trt_layermerge.core.device import Precision
from trt_layermerge.core.tables import LatencyEntry, LatencyTable
from trt_layermerge.errors import StickyDeviceError, UsageError, words_of
from trt_layermerge.measure.apart import Timer
from trt_layermerge.measure.conditions import device_here
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.measure.store import LatencyStore
from trt_layermerge.measure.timing import Timing, Turns

ROUNDS = 12
CHUNK_SPECS = 8
CHUNK_BYTES = 256 * 2**20
PASSES = 5
LIMIT_MS = 500.0

Progress = Callable[[int, int], None]

ModelOf = Callable[[Spec], bytes]
"""Makes the ONNX model of a spec."""


@dataclass(frozen=True)
class SpecRequest:
    """Which blocks to measure, and how.

    Attributes:
        specs: What to measure; repetitions are ignored.
        precision: Type of weights and maps.
        batch: Images per run.
        rounds: Bursts of each.
        store: File of the ``LatencyStore``: what it has is not measured again.
        sentinel: Makes the network that is measured again and again where a device may drift.
        model_of: Makes the ONNX model of a spec; None where all are layers.
    """

    specs: Iterable[Spec]
    precision: Precision
    batch: int
    rounds: int
    store: Path
    sentinel: Callable[[], bytes]
    model_of: ModelOf | None = None


def measure_specs(
    asked: SpecRequest, backend: Backend, timer: Timer, on_progress: Progress
) -> LatencyTable:
    """Returns the latency of every spec, measuring what the store does not have yet.

    Specs are measured a chunk at a time, the chunk's networks interleaved, and a row of each is
    stored when the chunk is done: a killed run continues and has lost what one chunk took, which
    ``LIMIT_MS`` bounds. A spec that fails to build or to run gets an infinite latency with the
    reason; it is not stored, so the next run tries it again.

    Args:
        asked: What to measure, in rounds of five runs of each; slow specs get fewer, but three
            rounds at least.
        backend: Where to measure.
        timer: Times them there.
        on_progress: Called with the numbers of finished and of all specs after each chunk.

    Raises:
        CorruptInputError: If the store is damaged.
        DeviceError: If the store cannot be written, or this process can no longer use the GPU.
        UsageError: If precision or batch cannot be measured.
    """
    unique, how = list(dict.fromkeys(asked.specs)), (asked.precision, asked.batch)
    model_of = asked.model_of or layer_models(*how, backend.int8_fallback)
    entries: dict[Spec, LatencyEntry] = {}
    device = device_here(backend)
    with LatencyStore(asked.store, device) as store:
        for spec in unique:
            known = store.get(spec, *how)
            if known is not None:
                entries[spec] = known
        for chunk in chunks([s for s in unique if s not in entries]):
            for measured in _measure_chunk(chunk, timer, model_of, asked.rounds):
                store.put([(s, e) for s, e in measured.items() if not e.error], *how)
                entries.update(measured)
                on_progress(len(entries), len(unique))
    table = {(spec, *how): entries[spec] for spec in unique}
    return LatencyTable(device, table, notes={"rounds": asked.rounds})


def layer_models(precision: Precision, batch: int, fallback: Precision) -> ModelOf:
    """Returns what makes the models of layers; arguments as for ``spec_model``."""

    def model_of(spec: Spec) -> bytes:
        if isinstance(spec, PieceSpec):
            raise UsageError(f"{spec} can only be timed beside the network that it is a part of")
        return spec_model(spec, precision, batch, fallback)

    return model_of


def chunks(specs: Sequence[Spec]) -> Iterator[list[Spec]]:
    """Yields the specs in runs of at most ``CHUNK_SPECS``, weights within ``CHUNK_BYTES``."""
    chunk: list[Spec] = []
    size = 0
    for spec in specs:
        if chunk and (len(chunk) == CHUNK_SPECS or size + _weight_bytes(spec) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(spec)
        size += _weight_bytes(spec)
    if chunk:
        yield chunk


def _weight_bytes(spec: Spec) -> int:
    if not isinstance(spec, ConvSpec):
        return 0
    taps = spec.kernel[0] * spec.kernel[1]
    return 4 * taps * spec.out_channels * spec.in_channels // spec.groups


def _measure_chunk(
    specs: Sequence[Spec], timer: Timer, model_of: ModelOf, rounds: int
) -> Iterator[dict[Spec, LatencyEntry]]:
    """Yields the entries of some specs, timed in turns: all at once.

    Where one fails, each is tried alone, and yielded when it is known, so that the others are
    spared, and so is one that failed only because the others held the memory.

    Raises:
        StickyDeviceError: If this process can no longer use the GPU.
    """
    try:
        models = [model_of(spec) for spec in specs]
        timings = timer(models, Turns(rounds, 0, PASSES, LIMIT_MS))
    except (StickyDeviceError, UsageError):
        raise  # nothing else would run in this process either, and be taken for broken
    except Exception as error:  # libraries raise anything, and MemoryError, over one bad network
        if len(specs) == 1:
            yield {specs[0]: LatencyEntry(math.inf, error=words_of(error))}
        else:
            for spec in specs:
                yield from _measure_chunk([spec], timer, model_of, rounds)
        return
    yield {spec: entry_of(timing) for spec, timing in zip(specs, timings, strict=True)}


def entry_of(timing: Timing) -> LatencyEntry:
    """Returns a timing as the entry of a latency table."""
    return LatencyEntry(timing.ms, timing.p10_ms, timing.p90_ms, timing.samples)
