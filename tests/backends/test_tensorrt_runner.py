"""Running an engine, on a fake GPU: what is copied, launched, captured, timed and freed."""

import numpy as np
import pytest

from tests.backends.fake_cuda import FakeCudaRuntime, about
from tests.backends.fake_engine import FakeContext, FakeEngine, fake_library
from tests.backends.fake_tensorrt import VERSIONS
from trt_layermerge.backends.cuda import Cuda
from trt_layermerge.backends.tensorrt_runner import EngineRunner, group_size
from trt_layermerge.errors import DeviceError, StickyDeviceError, UsageError

X = np.arange(18, dtype=np.float32).reshape(1, 2, 3, 3)


@pytest.fixture
def runtime():
    return FakeCudaRuntime()


@pytest.fixture
def engine(runtime):
    return FakeEngine(runtime)


def opened(engine, *, plan=b"an engine", no_graphs=None, **options):
    cuda = Cuda(engine.runtime, "fake")
    cuda.no_graphs = no_graphs
    return EngineRunner(fake_library(engine), cuda, plan, 0, **options)


def timing_calls(runtime):
    """The calls that matter for timing, since the engine was loaded."""
    wanted = ("enqueue", "EventRecord", "BeginCapture", "EndCapture", "GraphLaunch", "Synchronize")
    start = runtime.calls.index("enqueue")
    return [
        next(w for w in wanted if w in name)
        for name in runtime.calls[start:]
        if any(w in name for w in wanted)
    ]


def test_outputs_come_back_from_the_device(engine):
    with opened(engine) as runner:
        assert runner.input_shapes == {"input": (1, 2, 3, 3)}
        assert runner.output_names == ("logits",)
        first = runner.infer({"input": X})["logits"]
        np.testing.assert_array_equal(first, 2 * X)
        runner.infer({"input": -X})
        np.testing.assert_array_equal(first, 2 * X)  # not overwritten by the next run
        with pytest.raises(UsageError, match="takes the inputs"):
            runner.infer({"input": X[:, :1]})


@pytest.mark.parametrize("version", ["8.5.2", *VERSIONS])
def test_every_version_has_what_is_asked_of_it(runtime, version):
    """The fakes have the names of the real bindings and no others."""
    engine = FakeEngine(runtime, shape=(-1, 2, 3, 3))
    library = fake_library(engine, version)
    with EngineRunner(library, Cuda(runtime, "fake"), b"an engine", 0, batch=1) as runner:
        np.testing.assert_array_equal(runner.infer({"input": X})["logits"], 2 * X)
        assert runner.time_burst(3) == [about(0.25)] * 3


def test_strided_inputs_of_another_type_are_copied_in_order(engine):
    x = np.arange(18, dtype=np.float64).reshape(3, 3, 2, 1).transpose(3, 2, 0, 1)
    with opened(engine) as runner:
        np.testing.assert_array_equal(runner.infer({"input": x})["logits"], 2 * x)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("HALF", np.float16),
        ("INT8", np.int8),
        ("INT32", np.int32),
        ("BOOL", np.bool_),
    ],
)
def test_every_type_that_numpy_has(runtime, kind, dtype):
    x = (X % 2).astype(dtype)
    with opened(FakeEngine(runtime, kind=kind)) as runner:
        output = runner.infer({"input": x})["logits"]
    assert output.dtype == dtype
    np.testing.assert_array_equal(output, x + x)


def test_a_type_that_numpy_lacks_is_refused(runtime):
    with pytest.raises(DeviceError, match="type BF16, which numpy does not have"):
        opened(FakeEngine(runtime, kind="BF16"))
    assert runtime.held == 0


def test_uploads_are_waited_for(engine):
    """A copy may still be on its way when cudaMemcpy returns; our stream does not wait for it."""
    opened(engine).close()
    uploaded = engine.runtime.calls.index("cudaMemcpy")
    assert engine.runtime.calls[uploaded + 1] == "cudaDeviceSynchronize"


def test_the_seed_decides_the_bound_inputs(runtime):
    def bound(seed):
        runner = EngineRunner(
            fake_library(FakeEngine(runtime)), Cuda(runtime, "fake"), b"an engine", seed
        )
        data = next(iter(runtime.memory.values())).raw
        runner.close()
        return data

    assert bound(1) == bound(1) != bound(2)
    np.testing.assert_array_equal(
        np.frombuffer(bound(1), np.float32),
        np.random.default_rng(1).standard_normal(18, np.float32),
    )


def test_a_dynamic_batch_is_the_usual_one_or_the_one_asked_for(runtime):
    engine = FakeEngine(runtime, shape=(-1, 2, 3, 3))
    with opened(engine) as runner:
        assert runner.input_shapes == {"input": (2, 2, 3, 3)}
    with opened(engine, batch=4) as runner:
        x = np.concatenate([X, -X, X, 3 * X])
        np.testing.assert_array_equal(runner.infer({"input": x})["logits"], 2 * x)
        assert {len(buffer) for buffer in runtime.memory.values()} == {4 * x.size}
    for batch in (0, 5):
        with pytest.raises(UsageError, match=r"from \(1, 2, 3, 3\) to \(4, 2, 3, 3\)"):
            opened(engine, batch=batch)
    assert runtime.held == 0


def test_a_static_batch_is_the_only_one(engine):
    opened(engine, batch=1).close()
    with pytest.raises(UsageError, match="not in batches of 2"):
        opened(engine, batch=2)


def test_a_shape_that_depends_on_the_data_is_refused(runtime):
    engine = FakeEngine(runtime)
    context = FakeContext(engine)
    context.get_tensor_shape = lambda name: (1, 2, 3, 3) if name == "input" else (-1,)
    engine.create_execution_context = lambda: context
    with pytest.raises(DeviceError, match="depends on the data"):
        opened(engine)


def test_padded_layouts_are_timed_but_not_read(engine):
    engine.layout = "HWC8"
    with opened(engine) as runner:
        assert {len(b) for b in engine.runtime.memory.values()} == {4 * 8 * 3 * 3}
        assert runner.time_burst(1) == [about(0.25)]
        with pytest.raises(DeviceError, match="input, logits in a layout of its own"):
            runner.infer({"input": X})


def test_short_runs_are_timed_by_the_graph(runtime, engine):
    """A run of 0.25 ms: four make a group; launching the graph costs once for all four."""
    runtime.launch_ms = 0.04
    with opened(engine) as runner:
        assert (runner.method, runner.enqueue_ms, runner.group) == ("enqueue", None, 0)
        assert runner.time_burst(6) == [about(0.26)] * 6
        assert (runner.method, runner.group, runner.no_graph) == ("graph", 4, None)
    look = ["EventRecord", "enqueue", "EventRecord", "Synchronize"]
    assert timing_calls(runtime)[:-1] == [  # the last one waits before everything is freed
        *("enqueue", "Synchronize"),
        *(5 * look),
        *("BeginCapture", *4 * ["enqueue"], "EndCapture", "GraphLaunch", "Synchronize"),
        *("EventRecord", "GraphLaunch", "EventRecord", "GraphLaunch", "EventRecord"),
        "Synchronize",
    ]


def test_noise_is_measured_and_not_made_up(engine):
    """Eight groups of four take eight different times, and the runs of a group one."""
    with opened(engine) as runner:
        times = runner.time_burst(32)
    groups = [times[i : i + 4] for i in range(0, 32, 4)]
    assert all(len(set(group)) == 1 for group in groups)
    assert len({group[0] for group in groups}) == 8
    assert times == [about(0.25)] * 32


def test_the_second_burst_prepares_nothing(runtime, engine):
    with opened(engine) as runner:
        runner.time_burst(4)
        before = len(runtime.calls)
        runner.time_burst(4)
        names = [name for name in runtime.calls[before:] if "Elapsed" not in name]
    expected = ["EventRecord", "GraphLaunch", "EventRecord", "StreamSynchronize"]
    assert names == [f"cuda{name}" for name in expected]


@pytest.mark.parametrize(
    ("run_ms", "group"), [(0.0, 20), (0.01, 20), (0.05, 20), (0.3, 4), (1.0, 1), (50.0, 1)]
)
def test_groups_last_a_millisecond_and_have_at_most_twenty_runs(run_ms, group):
    assert group_size(run_ms) == group


def test_an_engine_that_cannot_be_captured_is_launched_run_by_run(runtime, engine):
    engine.refuses, runtime.launch_ms = "capture", 0.04
    with opened(engine) as runner:
        assert runner.time_burst(5) == [about(0.29)] * 5
        assert (runner.method, runner.group) == ("enqueue", 4)
        assert "failed to run" in runner.no_graph
        np.testing.assert_array_equal(runner.infer({"input": X})["logits"], 2 * X)
    assert runtime.recorded is None
    assert runtime.held == 0


@pytest.mark.parametrize(
    "function",
    ["cudaStreamBeginCapture", "cudaGraphInstantiateWithFlags", "cudaGraphLaunch"],
)
def test_a_capture_that_fails_falls_back(function):
    runtime = FakeCudaRuntime(fails={function: 901})
    with opened(FakeEngine(runtime)) as runner:
        assert runner.time_burst(2) == [about(0.25)] * 2
        assert runner.method == "enqueue"
        assert f"{function} failed: operation failed due to" in runner.no_graph
    assert runtime.held == 0


def test_a_binding_without_graphs_falls_back(runtime, engine):
    with opened(engine, no_graphs="pycuda has no graphs") as runner:
        assert runner.time_burst(3) == [about(0.25)] * 3
        assert (runner.method, runner.no_graph) == ("enqueue", "pycuda has no graphs")
    assert "cudaStreamBeginCapture" not in runtime.calls


def test_launching_is_timed_by_the_host(runtime, engine):
    """The host's clock is read before and after each of five launches; one is disturbed."""
    readings = iter([0.0, 0.0005, 1.0, 1.0004, 2.0, 2.01, 3.0, 3.0004, 4.0, 4.0004])
    with opened(engine, clock=lambda: next(readings)) as runner:
        runner.time_burst(1)
        assert runner.enqueue_ms == pytest.approx(0.4)


def test_everything_is_freed_once_the_last_made_first(runtime, engine):
    runner = opened(engine)
    runner.time_burst(4)
    assert (len(runtime.memory), len(runtime.streams), len(runtime.graphs)) == (2, 1, 1)
    before = len(runtime.calls)
    runner.close()
    runner.close()
    assert runtime.held == 0
    freed = [name.removeprefix("cuda") for name in runtime.calls[before:]]
    assert freed == [
        "GraphExecDestroy",
        *2 * ["EventDestroy"],
        "StreamSynchronize",
        *2 * ["Free"],
        "StreamDestroy",
    ]


def test_engine_of_another_version(engine):
    with pytest.raises(DeviceError, match=r"versions differ.*build it again"):
        opened(engine, plan=b"another engine")


def test_no_memory_to_run_in(engine):
    engine.refuses = "memory"
    with pytest.raises(DeviceError, match=r"gets no memory to run in.*smaller --batch"):
        opened(engine)


@pytest.mark.parametrize("allowed", [0, 1])
def test_out_of_memory_half_way_gives_back_what_was_taken(runtime, engine, allowed):
    allocate, taken = Cuda.allocate, []

    class Small(Cuda):
        def allocate(self, size_bytes):
            if len(taken) == allowed:
                runtime.fails = {"cudaMalloc": 2}
            taken.append(allocate(self, size_bytes))
            return taken[-1]

    with pytest.raises(DeviceError, match=r"cudaMalloc failed: out of memory.*smaller --batch"):
        EngineRunner(fake_library(engine), Small(runtime, "fake"), b"an engine", 0)
    assert len(taken) == allowed
    assert runtime.held == 0


def test_an_engine_that_does_not_run(engine):
    engine.refuses = "run"
    with opened(engine) as runner:
        for use in (lambda: runner.infer({"input": X}), lambda: runner.time_burst(1)):
            with pytest.raises(DeviceError, match="failed to run") as caught:
                use()
            assert not isinstance(caught.value, StickyDeviceError)


@pytest.mark.parametrize("run", [1, 3, 8, 12], ids=["first", "look", "capture", "burst"])
def test_a_fault_of_the_gpu_ends_the_process(runtime, engine, run):
    """Whichever run it is, the error says so, and closing does not put another in its place."""
    engine.fault = (700, run)
    with (
        pytest.raises(StickyDeviceError, match=r"illegal memory access.*in a new one"),
        opened(engine) as runner,
    ):
        for _ in range(3):
            runner.time_burst(4)
    assert runtime.dead == 700


def test_what_tensorrt_says_does_not_hide_a_fault(runtime, engine):
    with opened(engine) as runner:
        engine.refuses, runtime.dead = "run", 700
        with pytest.raises(StickyDeviceError):
            runner.infer({"input": X})
        runtime.dead = 0


def test_a_failure_to_close_is_told_unless_another_came_first(runtime, engine):
    runner = opened(engine)
    runtime.fails = {"cudaFree": 700, "cudaStreamDestroy": 2}
    with pytest.raises(StickyDeviceError, match="cudaFree"):
        runner.close()
    runner.close()
    runtime.fails = {}
    with pytest.raises(KeyError, match="the first"), opened(engine):
        runtime.fails = {"cudaFree": 2}
        raise KeyError("the first")
    runtime.fails = {}
    with pytest.raises(DeviceError, match="cudaFree"), opened(engine):
        runtime.fails = {"cudaFree": 2}
