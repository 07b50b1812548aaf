"""Interleaved timing against scripted latencies: the statistics, drift, limits."""

from dataclasses import replace

import pytest

from tests.measure.scripted import ScriptedBackend
from trt_layermerge.backends import Runner, get_backend
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.errors import DeviceError
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.measure.timing import (
    DRIFT_LIMIT,
    Timing,
    Turns,
    drift,
    quantile,
    speedup,
    time_models,
    warm_up,
)

SMALL = ConvSpec(16, 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, 16)
LARGE = replace(SMALL, height=64, width=64)
MODELS = [spec_model(LARGE, "fp32", 1), spec_model(SMALL, "fp32", 1)]
SMALL_BYTES = 4 * (16 * 16 * 9 + 16 + 16 * 16 * 16)


def by_hand(backend: ScriptedBackend) -> float:
    """Latency of SMALL, from the formula in the backend's docstring."""
    gmacs = 16 * 16 * 16 * 16 * 9 / 1e9
    return (
        backend.overhead_ms + backend.ms_per_gmac * gmacs + backend.ms_per_mib * SMALL_BYTES / 2**20
    )


def test_an_undisturbed_run_gives_the_scripted_latency() -> None:
    backend = ScriptedBackend()
    large, small = time_models(MODELS, backend, Turns(rounds=5))
    assert small.ms == pytest.approx(by_hand(backend), rel=1e-12)
    assert small.ms == small.p10_ms == small.p90_ms
    assert small.rounds == large.rounds == 5
    assert large.ms > small.ms


def test_a_burst_lasts_about_as_long_as_asked() -> None:
    large, small = time_models(MODELS, ScriptedBackend(), Turns(rounds=5, burst_ms=3.0))
    for timing in (large, small):
        assert timing.samples % 5 == 0
        burst_ms = timing.samples / 5 * timing.ms
        assert 3.0 <= burst_ms <= 3.0 + max(timing.ms, 3.0)


def test_the_least_round_median_ignores_disturbed_rounds() -> None:
    """Noise only ever slows down: the estimate stays within 2 %, the mean does not."""
    (timing,) = time_models(MODELS[1:], ScriptedBackend(noise=0.3, seed=1), Turns(rounds=30))
    truth = by_hand(ScriptedBackend())
    # A median of the half-normal slowdown is 0.3 * 0.674 above the truth.
    assert truth < timing.ms < timing.p90_ms
    assert timing.ms < truth * 1.25 and timing.p10_ms <= timing.p90_ms


def test_the_paired_ratio_survives_a_drifting_clock() -> None:
    """A host that slows down threefold during the run leaves the ratio alone, not the medians."""
    steady = time_models(MODELS, ScriptedBackend(), Turns(rounds=20))
    runs = ScriptedBackend()
    time_models(MODELS, runs, Turns(rounds=20))
    total = runs.runs
    rising = ScriptedBackend(drift=lambda n: 1 + 2 * n / total)
    drifting = time_models(MODELS, rising, Turns(rounds=20))
    truth = steady[0].ms / steady[1].ms
    ratio = speedup(drifting[0], drifting[1])
    assert ratio.value == pytest.approx(truth, rel=0.06)
    assert ratio.p10 <= ratio.value <= ratio.p90
    assert drifting[0].p90_ms > 1.5 * drifting[0].ms


def test_one_disturbed_round_leaves_the_speed_up_alone() -> None:
    """The median of 2, 2, 2, 2 and 40; their mean is 9.6."""
    reference = Timing((2.0, 2.0, 2.0, 2.0, 40.0), (2.0,))
    ratio = speedup(reference, Timing((1.0,) * 5, (1.0,)))
    assert (ratio.value, ratio.p10) == (2.0, 2.0)


def test_ratios_of_different_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="paired"):
        speedup(Timing((1.0, 2.0), (1.0, 2.0)), Timing((1.0,), (1.0,)))


def test_a_slow_network_sits_out_once_its_limit_is_used_up() -> None:
    slow, fast = time_models(
        MODELS, ScriptedBackend(ms_per_gmac=1000), Turns(rounds=20, limit_ms=100.0)
    )
    assert slow.rounds == 11  # 9.4 ms a run: the eleventh passes the limit
    assert fast.rounds == 20


def test_single_runs_take_turns() -> None:
    """Clock readings are scripted by run number: in turns, each network sees every other one."""
    even_runs_are_slow = ScriptedBackend(drift=lambda run: 1.0 if run % 2 else 3.0)
    large, small = time_models(MODELS, even_runs_are_slow, Turns(rounds=4, burst_ms=0, passes=5))
    assert large.samples == small.samples == 20
    assert len({*large.runs_ms, *small.runs_ms}) == 2
    steady = time_models(MODELS, ScriptedBackend(), Turns(rounds=4))
    slow = {round(large.ms / steady[0].ms), round(small.ms / steady[1].ms)}
    assert slow == {1, 3}


def test_failures_are_raised() -> None:
    with pytest.raises(DeviceError, match="boom"):
        time_models(MODELS, ScriptedBackend(failing={str(SMALL): "boom"}), Turns())


def test_real_networks_are_timed_in_plausible_order() -> None:
    large, small = time_models(MODELS, get_backend("onnxruntime"), Turns(rounds=5))
    assert speedup(large, small).value > 2


def test_quantiles_interpolate() -> None:
    assert quantile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert quantile([5.0], 0.9) == 5.0
    assert quantile([0.0, 10.0], 0.9) == pytest.approx(9.0)


class LaunchBound(Runner):
    """Each run keeps the device busy for 0.01 ms and the host for 0.5 ms."""

    warmup_ms, method, enqueue_ms = 200.0, "graph", 0.4

    def __init__(self, once_s: float = 0.0) -> None:
        self.seconds, self.counts, self.once_s = 0.0, [], once_s

    def clock(self) -> float:
        return self.seconds

    def time_burst(self, count: int) -> list[float]:
        self.seconds += 0.0005 * count + (0 if self.counts else self.once_s)
        self.counts.append(count)
        return [0.01] * count


@pytest.mark.parametrize("once_s", [0.0, 3.0])
def test_a_device_warms_up_by_the_clock_on_the_wall(once_s: float) -> None:
    """2 + 4 + … + 256 runs of 0.5 ms are the first to last 200 ms; they keep it busy for 5 ms.

    What the first burst does only once, such as capturing a graph, warms nothing.
    """
    runner = LaunchBound(once_s)
    assert warm_up(runner, 1.0, runner.clock) == 100
    assert runner.counts == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_a_scripted_device_warms_up_by_its_own_clock() -> None:
    runner = LaunchBound()
    runner.warmup_ms = 1.0
    assert warm_up(runner, 0.0, lambda: 0.0) == 1
    assert sum(runner.counts) * 0.01 >= 1.0 > sum(runner.counts[:-1]) * 0.01


def test_how_it_was_timed_goes_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    (timing,) = time_models(MODELS[1:], ScriptedBackend(), Turns(rounds=3))
    assert (timing.method, timing.enqueue_ms) == ("call", None)
    backend = ScriptedBackend()
    monkeypatch.setattr(backend, "open", lambda model: LaunchBound())
    (timing,) = time_models([b""], backend, Turns(rounds=3, burst_ms=0))
    assert (timing.method, timing.enqueue_ms, timing.ms) == ("graph", 0.4, 0.01)


def test_a_sentinel_tells_drift_either_way() -> None:
    steady = ScriptedBackend()
    first, again = (time_models(MODELS[1:], steady, Turns(rounds=3))[0] for _ in range(2))
    assert drift(first, again) == 0
    (slower,) = time_models(MODELS[1:], ScriptedBackend(drift=lambda run: 1.04), Turns(rounds=3))
    assert drift(first, slower) == pytest.approx(0.04)
    assert drift(slower, first) == pytest.approx(1 / 1.04 - 1)
    assert drift(first, slower) > DRIFT_LIMIT > -drift(slower, slower)


def test_doubtful_figures_say_why() -> None:
    assert Timing((1.0, 1.0, 1.0), (1.0,), "graph", 0.8).warnings() == ()
    wandering = Timing((1.0, 1.1, 0.9), (1.0,))
    assert wandering.variation == pytest.approx(0.0816, abs=1e-4)  # sqrt(0.02 / 3)
    (warning,) = wandering.warnings()
    assert "vary by 8.2%" in warning and "lock the clocks" in warning
    (warning,) = Timing((1.0, 1.0), (1.0,), "graph", 0.81).warnings()
    assert "host 0.8100 ms" in warning and "without a CUDA graph" in warning
    assert Timing((1.0, 1.01, 1.0), (1.0,)).warnings() == ()
