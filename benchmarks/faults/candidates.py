"""Candidates that fail, hang, crash, run out of memory or are timed to nothing, one at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.faults.campaign import Trial
from benchmarks.faults.processes import ended, started
from tests.measure.troubled import SITE, network
from trt_layermerge.backends import get_backend
from trt_layermerge.backends.base import Runner
from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.core.conv import ConvSpec, Spec
from trt_layermerge.measure import apart
from trt_layermerge.measure.apart import Apart
from trt_layermerge.measure.meter import BackendMeter, Beside, Failed, SpecRequest

TROUBLES = ("open", "abort", "exit", "segv", "hang", "memory", "eats", "odd")
TIMES = {"time 0": 0.0, "time -1": -1.0, "time nan": math.nan, "time inf": math.inf}
SOUND = ConvSpec(4, 4, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1, 8, 8)
BROKEN = replace(SOUND, out_channels=5)


class _OddClock(FakeBackend):
    def __init__(self, ms: float) -> None:
        super().__init__()
        self.odd = ms

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        runner = super().open(model, seed=seed)
        if b"broken" in model:
            runner.ms = self.odd
        return runner


def candidate_trials(work: Path, count: int) -> Iterator[Trial]:
    """Yields a broken candidate among sound ones, a block or a whole network, in turn.

    Args:
        work: Folder for what is written.
        count: How many.
    """
    troubles = (*TROUBLES, *TIMES)
    for number in range(count):
        trouble, kind = troubles[number % len(troubles)], ("block", "network")[number // 12 % 2]
        name = f"{kind}: {trouble}"
        yield Trial(name, number, _breaking(work / "candidates", trouble, kind), 60)


def _breaking(folder: Path, trouble: str, kind: str) -> Callable[[Random], tuple[str, str]]:
    def work(rng: Random) -> tuple[str, str]:
        place = rng.randrange(3)
        folder.mkdir(parents=True, exist_ok=True)
        said, store = folder / "said", folder / "latency.sqlite"
        store.unlink(missing_ok=True)
        (folder / "sitecustomize.py").write_text(SITE)
        (folder / "troubles.json").write_text(json.dumps({"broken": trouble}))

        def measure() -> int:
            os.environ["PYTHONPATH"] = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
            apart.HANG_SECONDS = 1.0
            error = (_of_networks if kind == "network" else _of_blocks)(
                _meter(trouble), place, store
            )
            os.write(2, error.encode())
            return 0

        done = ended(started(measure, said), said)
        if done.code != 0 or done.raw or not done.said:
            return "raw", f"{place}: {done.code}: {done.said}"
        return "refused", f"{place}: {done.said}"

    return work


def _meter(trouble: str) -> BackendMeter:
    if trouble in TIMES:
        return BackendMeter(_OddClock(TIMES[trouble]))
    return BackendMeter(get_backend("onnxruntime"), partial(Apart, "onnxruntime", {}))


def _of_networks(meter: BackendMeter, place: int, _: Path) -> str:
    names = ["sound", "sound"]
    names.insert(place, "broken")
    found = meter.networks(network("o"), [network(name) for name in names], 3)
    broken = found.pop(place)
    assert isinstance(broken, Failed) and all(isinstance(one, Beside) for one in found), found
    assert all(math.isfinite(one.ms) and one.ms > 0 for one in found if isinstance(one, Beside))
    return broken.error


def _of_blocks(meter: BackendMeter, place: int, store: Path) -> str:
    specs: list[Spec] = [replace(SOUND, groups=g) for g in (1, 2)]
    specs.insert(place, BROKEN)
    asked = SpecRequest(specs, "fp32", 1, 3, store, lambda: network("o"), _model)
    entries = {spec: entry for (spec, *_), entry in meter.specs(asked).entries.items()}
    broken = entries.pop(BROKEN)
    assert math.isinf(broken.ms) and broken.error, broken
    assert all(math.isfinite(e.ms) and e.ms > 0 and not e.error for e in entries.values()), entries
    return broken.error


def _model(spec: Spec) -> bytes:
    return network("broken" if spec == BROKEN else "sound")
