"""Fitting against networks whose latency follows from known unknowns."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.measure.networks import measured, plan_model, plan_specs, random_plan, resnet20
from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.core.conv import AddSpec, ConvSpec, Spec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.tables import LatencyEntry, LatencyTable
from trt_layermerge.errors import DeviceError, UsageError
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.measure import fit
from trt_layermerge.measure.fit import Observation, fit_latency, rank_correlation, settled
from trt_layermerge.measure.timing import Turns, time_models

RNG = np.random.default_rng(0)
SPECS: list[Spec] = [
    ConvSpec(c, d, (k, k), (1, 1), (k // 2,) * 4, (1, 1), 1, size, size)
    for k in (1, 3, 5)
    for c, d, size in ((8, 32, 32), (32, 8, 32), (16, 48, 16), (64, 64, 8))
] + [AddSpec(32, 32, 32)]
START, READ, WRITE, OVERHEAD = -0.004, -4e-7, -9e-7, 0.5
DEVICE = DeviceInfo("fake", "1", "here")


def maps(spec: Spec) -> tuple[int, int]:
    """Elements of input and output, written down a second time."""
    if isinstance(spec, AddSpec):
        return (spec.channels * spec.height * spec.width,) * 2
    pixels = spec.height * spec.width
    return spec.in_channels * pixels, spec.out_channels * pixels


def table_of(alone: dict[Spec, float]) -> LatencyTable:
    entries = {(spec, "fp32", 1): LatencyEntry(ms) for spec, ms in alone.items()}
    return LatencyTable(DEVICE, entries)


def world(deviation: float, seed: int) -> tuple[LatencyTable, dict[Spec, float]]:
    """A table of blocks alone, and what each costs inside a network."""
    rng = np.random.default_rng(seed)
    alone = {s: 0.1 + 0.4 * float(rng.random()) for s in SPECS}
    inside = {
        s: t * (1 + deviation * float(rng.standard_normal()))
        + START
        + READ * maps(s)[0]
        + WRITE * maps(s)[1]
        for s, t in alone.items()
    }
    return table_of(alone), inside


def networks(inside: dict[Spec, float], count: int, seed: int, noise: float) -> list[Observation]:
    rng = random.Random(seed)
    chosen = [tuple(rng.choices(SPECS, k=rng.randint(6, 30))) for _ in range(count)]
    return [
        Observation(c, (OVERHEAD + sum(inside[s] for s in c)) * (1 + rng.gauss(0, noise)))
        for c in chosen
    ]


def errors(table: LatencyTable, tests: list[Observation]) -> np.ndarray:
    predicted = [table.overhead_ms + sum(table[s, "fp32", 1] for s in test.specs) for test in tests]
    return np.abs(np.array(predicted) / [test.ms for test in tests] - 1)


@pytest.mark.parametrize("seed", range(5))
def test_new_networks_are_predicted(seed: int) -> None:
    bare, inside = world(deviation=0.03, seed=seed)
    train = networks(inside, 16, seed=seed, noise=0.005)
    tests = networks(inside, 50, seed=seed + 100, noise=0.0)
    fitted = fit_latency(bare, train, "fp32", 1)
    assert np.median(errors(fitted, tests)) < 0.01
    assert errors(fitted, tests).max() < 0.05
    assert np.median(errors(bare, tests)) > 2 * np.median(errors(fitted, tests))


def test_left_out_errors_are_what_new_networks_show() -> None:
    """The promise in the notes is neither rosy nor gloomy: over eight worlds, within a third."""
    ratios = []
    for seed in range(8):
        bare, inside = world(deviation=0.05, seed=seed)
        fitted = fit_latency(bare, networks(inside, 30, seed=seed, noise=0.01), "fp32", 1)
        fresh = np.median(errors(fitted, networks(inside, 200, seed=seed + 100, noise=0.01)))
        notes = fitted.notes["fit"]
        ratios.append(notes["median_error"] / fresh)
        assert notes["worst_error"] >= notes["median_error"]
        assert notes["networks"] == 30
        assert notes["spearman"] > 0.9
    assert 0.67 < np.mean(ratios) < 1.5


def test_a_block_that_deviates_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block is a third slower inside than the others suggest; many networks tell which."""
    bare, inside = world(deviation=0.0, seed=3)
    odd = SPECS[4]
    inside[odd] += bare[odd, "fp32", 1] / 3
    seen = networks(inside, 60, seed=3, noise=0.002)
    fitted = fit_latency(bare, seen, "fp32", 1)
    assert abs(fitted[odd, "fp32", 1] / inside[odd] - 1) < 0.1
    monkeypatch.setattr(fit, "SPEC_SPREAD", 1e-6)
    blind = fit_latency(bare, seen, "fp32", 1)
    assert abs(blind[odd, "fp32", 1] / inside[odd] - 1) > 0.2


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_networks_correct_the_level_and_promise_nothing(count: int) -> None:
    bare, inside = world(deviation=0.0, seed=4)
    train = networks(inside, count, seed=4, noise=0.0)
    fitted = fit_latency(bare, train, "fp32", 1)
    assert errors(fitted, train).max() < 0.02
    assert fitted.notes["fit"] == {
        "networks": count,
        "median_error": None,
        "worst_error": None,
        "spearman": None,
    }


def test_costs_stay_positive_whatever_was_measured() -> None:
    bare, _ = world(deviation=0.0, seed=5)
    absurd = [Observation((spec,) * 3, 1e-3) for spec in SPECS]
    fitted = fit_latency(bare, absurd, "fp32", 1)
    assert all(entry.ms > 0 for entry in fitted.entries.values())


def test_no_block_is_taken_to_cost_less_than_a_tenth_of_what_it_costs_alone() -> None:
    """Networks say that maps cost nothing inside them; one block is hardly more than its maps."""
    bare, inside = world(deviation=0.0, seed=7)
    slight = SPECS[0]
    entries = {**bare.entries, (slight, "fp32", 1): LatencyEntry(2e-3)}
    seen = networks(inside, 60, seed=7, noise=0.0)
    rest = [o for o in seen if slight not in o.specs]
    fitted = fit_latency(LatencyTable(DEVICE, entries), rest, "fp32", 1)
    assert len(rest) > 1
    assert fitted[slight, "fp32", 1] == pytest.approx(2e-4, rel=1e-12)


def test_other_entries_and_failures_stay() -> None:
    bare, inside = world(deviation=0.0, seed=6)
    extra = {
        (SPECS[0], "fp16", 1): LatencyEntry(7.0),
        (SPECS[0], "fp32", 8): LatencyEntry(8.0),
        (AddSpec(1, 1, 1), "fp32", 1): LatencyEntry(math.inf, error="no"),
    }
    bare = LatencyTable(DEVICE, {**bare.entries, **extra}, notes={"rounds": 12})
    fitted = fit_latency(bare, networks(inside, 8, seed=6, noise=0.0), "fp32", 1)
    assert {key: fitted.entries[key] for key in extra} == extra
    assert fitted.notes["rounds"] == 12
    failed = Observation((AddSpec(1, 1, 1),), 1.0)
    with pytest.raises(DeviceError, match="could not be timed"):
        fit_latency(bare, [failed], "fp32", 1)
    with pytest.raises(UsageError, match="none"):
        fit_latency(bare, [], "fp32", 1)
    with pytest.raises(UsageError, match="no latency"):
        fit_latency(bare, [Observation((AddSpec(9, 9, 9),), 1.0)], "fp32", 1)


def test_plans_of_a_real_network_on_a_scripted_device(tmp_path: Path) -> None:
    """ResNet-20 plans: bare sums are wrong by an overhead a block; fitted ones are right."""
    graph = resnet20()
    candidates = enumerate_candidates(graph)
    rng = random.Random(0)
    plans = [random_plan(graph, candidates, rng, 0.5) for _ in range(12)]
    backend = FakeBackend(overhead_ms=0.01)
    specs = [spec for plan in plans for spec in plan_specs(plan)]
    bare = measured(specs, backend, "fp32", 1, tmp_path / "s", rounds=3)
    timings = time_models([plan_model(graph, plan) for plan in plans], backend, Turns(rounds=3))
    seen = [Observation(plan_specs(p), t.ms) for p, t in zip(plans, timings, strict=True)]
    fitted = fit_latency(bare, seen[:8], "fp32", 1)
    assert errors(bare, seen[8:]).min() > 0.1
    assert errors(fitted, seen[8:]).max() < 0.03


def test_rank_correlation_is_that_of_scipy() -> None:
    first, second = RNG.integers(0, 9, 30), RNG.integers(0, 9, 30)
    expected = spearmanr(first, second)[0]
    assert rank_correlation(list(first), list(second)) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) == 0.0


def test_networks_without_a_block_are_refused() -> None:
    with pytest.raises(UsageError, match="no measured network has one"):
        fit_latency(table_of({}), [Observation((), 1.0)] * 4, "fp32", 1)


@pytest.mark.parametrize(("noise", "enough"), [(0.002, True), (0.1, False)])
def test_enough_networks_were_measured_once_each_is_predicted_by_the_others(
    noise: float, enough: bool
) -> None:
    bare, inside = world(deviation=0.01, seed=0)
    fitted = fit_latency(bare, networks(inside, 9, seed=0, noise=noise), "fp32", 1)
    assert settled(fitted) == enough == (fitted.notes["fit"]["worst_error"] <= 0.03)


def test_two_networks_tell_nothing_of_each_other() -> None:
    bare, inside = world(deviation=0.01, seed=0)
    assert not settled(fit_latency(bare, networks(inside, 2, seed=0, noise=0.0), "fp32", 1))
