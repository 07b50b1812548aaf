"""Both networks at every precision in one interleaved run, here or on another device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trt_layermerge.backends import Backend, get_backend
from trt_layermerge.backends.registry import int8_fallback
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.device import PRECISIONS, Precision
from trt_layermerge.core.jsonio import Json, damage, read_json, write_json
from trt_layermerge.deploy.engines import EngineFiles, fitting_engine
from trt_layermerge.deploy.sidecar import amend_sidecar, check_engine
from trt_layermerge.errors import DeviceError, UnsupportedModelError, UsageError, command
from trt_layermerge.measure.agent.telemetry import power_w
from trt_layermerge.measure.bench import ROUNDS, Bench, Pair, assemble, bench
from trt_layermerge.measure.conditions import Conditions, clock_of
from trt_layermerge.measure.energy import Energy, energy_of
from trt_layermerge.measure.meter import Failed, Meter
from trt_layermerge.measure.timing import Timing, speedup
from trt_layermerge.session.built import asked_precisions, built_engines, identity_of
from trt_layermerge.session.deployed import deployed_model
from trt_layermerge.session.settings import Settings

WALL_ROUNDS = 10
PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")


SIDES = ("original", "merged", "speedup", "low", "high")


@dataclass(frozen=True)
class Benching:
    """Times the exported networks of a folder.

    Attributes:
        folder: Where the exported networks and engines are.
        settings: Precisions, batch, and where to measure.
        meter: Measures where no backend is at hand.
        backend: What runs networks in this process; None where another device measures.
        trust: Whether engines without a matching sidecar are loaded.
        tell: What is called meanwhile.
    """

    folder: Path
    settings: Settings
    meter: Meter
    backend: Backend | None
    trust: bool
    tell: Callbacks

    def bench(self) -> Json:
        """Writes and returns ``bench.json``; figures at the measured precision stand at its top.

        Raises:
            UsageError: If the networks were exported for another batch.
            UnsupportedModelError: If they cannot be typed for the measured precision.
            DeviceError: If a network cannot be built or run.
            UntrustedInputError: If an engine does not belong to its sidecar.
        """
        measure = self.settings.measure
        self._refuse_other_batch()
        wanted = timed_precisions(self.settings)
        if measure.recorded:
            body = self._unmeasured(wanted)
        else:
            impossible = self._impossible(wanted)
            wanted = tuple(p for p in wanted if p not in impossible)
            if measure.host is not None or self.backend is None:
                result, wall = self._elsewhere(wanted), None
            else:
                able = self.backend.precisions()
                here = [p for p in wanted if p == measure.precision or p in able]
                result = self._here(here, self.backend)
                wall = self._wall_clock(self.backend)
            top = result[measure.precision].to_json()
            timed = {pairing.precision for pairing in result.pairings}
            untimed = {p: _why_untimed(measure.backend, p) for p in wanted if p not in timed}
            body = {
                "precision": measure.precision,
                **{name: top[name] for name in SIDES},
                **result.to_json(),
                "untimed": [
                    {"precision": p, "reason": reason}
                    for p, reason in {**untimed, **impossible}.items()
                ],
                "wall": wall,
            }
        write_json(self.folder / "bench.json", "bench", body)
        return body

    def _refuse_other_batch(self) -> None:
        path, batch = self.folder / "export.json", self.settings.measure.batch
        exported = read_json(path, "export")
        with damage(path):
            found = exported["models"]["model.onnx"]["input_shape"][0]
        if found != batch and self.settings.build.max_batch is None:
            raise UsageError(
                f"the networks were exported for a batch of {found}, not {batch}; measure, "
                f"choose and export for that batch: {command('run', self.folder)}"
            )

    def _unmeasured(self, wanted: Sequence[Precision]) -> Json:
        """Returns the body where latencies are imported and no device is at hand."""
        reason = (
            "latencies were imported, and the device they are of is not at hand; measure there: "
            f"{command('bench', self.folder, '--set', 'measure.host=HOST')}"
        )
        return {
            "precision": self.settings.measure.precision,
            "batch": self.settings.measure.batch,
            "device": self.meter.device().to_json(),
            **dict.fromkeys(SIDES),
            "comparable": False,
            "reason": reason,
            "precisions": [],
            "untimed": [{"precision": p, "reason": reason} for p in wanted],
            "int8": None,
        }

    def _here(self, precisions: Sequence[Precision], backend: Backend) -> Bench:
        """Returns both networks at every precision, timed in one run on this machine.

        Engines that ``build`` made for this GPU are timed themselves, and their sidecars are told;
        whatever has none is built for the occasion.
        """
        files = self._engine_files(backend) if self.settings.measure.engines else {}
        models = {p: files[p] if p in files else self._models(p) for p in precisions}
        plans = {plan for p in files if p in models for plan in files[p]}
        energy = _energy(backend)
        result = bench(
            models,
            EngineFiles(backend, plans) if plans else backend,
            batch=self.settings.measure.batch,
            energy=energy if callable(energy) else None,
        )
        if isinstance(energy, str):
            result = replace(result, power_note=energy)
        if plans:
            self._tell_sidecars(result, files.keys() & models.keys())
        return result

    def _elsewhere(self, precisions: Sequence[Precision]) -> Bench:
        """Returns both networks at every precision, timed by the agent on another device.

        Each pair is timed in turns; int8 and the type it replaces are one pair more.
        """
        seen: list[Conditions] = []

        def pair(first: bytes, second: bytes) -> tuple[Timing, Timing]:
            (outcome,) = self.meter.networks(first, [second], ROUNDS)
            if isinstance(outcome, Failed):
                raise DeviceError(outcome.error)
            seen.append(outcome.conditions)
            return outcome.builds[0]

        measure = self.settings.measure
        rest = int8_fallback(measure.backend)
        models = {p: self._models(p) for p in precisions}
        timings = {p: pair(*both) for p, both in models.items()}
        result = assemble(timings, self.meter.device(), measure.batch, rest)
        if result.int8 is not None:
            ratio = speedup(*pair(models[rest][1], models["int8"][1]))
            result = replace(result, int8=(rest, ratio))
        return replace(
            result,
            conditions=replace(seen[0], after=seen[-1].after),
            power_note="the agent reads power before and after each job only",
        )

    def _wall_clock(self, backend: Backend) -> Json | None:
        """Returns percentiles by the wall clock where the backend counts time on its core, or None.

        Tails of time on core leave out waiting for the core, which whoever waits for an answer
        feels.
        """
        if "time on core" not in backend.device().settings:
            return None
        measure, waiting = self.settings.measure, get_backend("onnxruntime", wall=True)
        models = {measure.precision: self._models(measure.precision)}
        found = bench(models, waiting, batch=measure.batch, rounds=WALL_ROUNDS)
        body, pairing = found.to_json(), found[measure.precision].to_json()
        sides = {s: {p: pairing[s][p] for p in PERCENTILES} for s in ("original", "merged")}
        return {**sides, "comparable": body["comparable"], "reason": body["reason"]}

    def _impossible(self, precisions: Sequence[Precision]) -> dict[Precision, str]:
        """Returns why networks cannot be typed for precisions beside the measured one."""
        found: dict[Precision, str] = {}
        for precision in precisions:
            try:
                self._models(precision)
            except UnsupportedModelError as error:
                if precision == self.settings.measure.precision:
                    raise
                found[precision] = str(error)
        return found

    def _models(self, precision: Precision) -> Pair:
        """Returns both networks as ONNX, as the search has timed them."""
        measure = self.settings.measure
        fallback = int8_fallback(measure.backend)
        batch = measure.batch if self.settings.build.max_batch is not None else None
        original, merged = (
            deployed_model(self.folder, network, precision, fallback, keep_io=False, batch=batch)
            for network in ("original", "merged")
        )
        return original, merged

    def _engine_files(self, backend: Backend) -> dict[Precision, Pair]:
        """Returns the engines of both networks by precision, where both fit this machine."""
        found: dict[tuple[Precision, str], bytes] = {}
        for built in built_engines(self.folder):
            if built.plan is None:
                continue
            path, wanted = self.folder / built.plan, identity_of(self.folder, built)
            try:
                plan, api = fitting_engine(path, trust=self.trust, wanted=wanted)
            except DeviceError as error:
                self.tell.note(f"{built.plan} is not timed: {error}")
                continue
            if api.flavor == backend.name:
                found[built.precision, built.network] = plan
        both = {p for p, network in found if (p, "original") in found and (p, "merged") in found}
        return {p: (found[p, "original"], found[p, "merged"]) for p in both}

    def _tell_sidecars(self, result: Bench, timed: Collection[Precision]) -> None:
        """Writes median and 99th percentile into the sidecars of the engines that were timed."""
        for built in built_engines(self.folder):
            if built.plan is None or built.precision not in timed:
                continue
            plan, pairing = self.folder / built.plan, result[built.precision]
            side = pairing.original if built.network == "original" else pairing.merged
            if check_engine(plan, trust=self.trust) is not None:
                amend_sidecar(plan, latency={"p50_ms": side.p50_ms, "p99_ms": side.p99_ms})


def timed_precisions(settings: Settings) -> tuple[Precision, ...]:
    """Returns the precisions that are timed where the device can: what is measured and built.

    Where int8 is among them, so is the float type it replaces: it has to be faster than that.
    """
    wanted = asked_precisions(settings)
    if "int8" in wanted:
        wanted.add(int8_fallback(settings.measure.backend))
    return tuple(p for p in PRECISIONS if p in wanted)


def _why_untimed(backend: str, precision: Precision) -> str:
    return (
        f"{backend} runs {precision} through casts here, which is slower than what will be "
        "deployed; time it on the target: trt-layermerge bench --backend tensorrt"
    )


def _energy(backend: Backend) -> Callable[[bytes, Backend], Energy] | str:
    """Returns what measures energy, or in words why nothing does."""
    if clock_of(backend.device()) != "gpu":
        return "power is read where a GPU runs the networks; what a processor draws is not read"
    reading = power_w()
    if reading.value is None:
        return reading.reason
    return energy_of
