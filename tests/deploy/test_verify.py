"""Differences, agreement and accuracy counted by hand; gates; what was not verified."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from tests.gpus import NO_GPU
from tests.nets import example, plain_chain
from trt_layermerge.backends.base import Runner, check_inputs
from trt_layermerge.backends.registry import get_backend
from trt_layermerge.backends.tensorrt import build_engine
from trt_layermerge.core.outputs import kinds_of
from trt_layermerge.deploy.comparison import Subject, infer_all
from trt_layermerge.deploy.engines import open_engine
from trt_layermerge.deploy.machine import this_machine
from trt_layermerge.deploy.sidecar import Origin, write_engine
from trt_layermerge.deploy.verify import gate
from trt_layermerge.deploy.verify import verify as verify_batches
from trt_layermerge.errors import (
    AccuracyGateError,
    CorruptInputError,
    DeviceError,
    UntrustedInputError,
    UsageError,
)
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.export.onnx import export_bytes

EYE = np.eye(4, dtype=np.float32)
IMAGES = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)


class Scripted(Runner):
    """Gives row ``i`` of a table for the image whose only pixel is ``i``."""

    def __init__(self, table, batch=3):
        self.table, self.input_shapes = table, {"input": (batch, 1, 1, 1)}
        self.output_names = ("logits",)
        self.closed = False

    def infer(self, inputs):
        check_inputs(self.input_shapes, inputs)
        return {"logits": self.table[inputs["input"][:, 0, 0, 0].astype(int)]}

    def close(self):
        self.closed = True


def verify(images, labels, reference, subjects, size=3):
    """Compares in batches of ``size``; ``reference`` has one row for each image, by network."""
    batches = [
        (images[i : i + size], None if labels is None else labels[i : i + size])
        for i in range(0, len(images), size)
    ]

    def answer(table):
        where = {image.tobytes(): row for image, row in zip(images, table, strict=True)}
        return lambda batch: {"logits": np.stack([where[image.tobytes()] for image in batch])}

    networks = {name: answer(table) for name, table in reference.items()}
    first = reference["original"]
    return verify_batches(batches, networks, subjects, kinds_of({"logits": first}, first.shape))


def subject(table, network="merged", tolerance=None, name="model.onnx"):
    return Subject(name, network, lambda: Scripted(table), tolerance)


def refuses():
    raise DeviceError("no driver")


def test_figures_by_hand():
    outputs = EYE.copy()
    outputs[0, 0], outputs[2, 3] = 0.75, 1.5  # image 2 changes its class
    merged = 2 * EYE[[0, 1, 2, 0]]  # image 3 has another class than the original's
    reference = {"original": EYE, "merged": merged}
    result = verify(
        IMAGES, np.array([0, 1, 1, 3]), reference, [subject(outputs, "original"), subject(merged)]
    )
    first, second = result.comparisons
    assert (first.max_abs, first.max_rel, first.agreement, first.accuracy) == (1.5, 1.5, 0.75, 0.75)
    assert (second.max_abs, second.max_rel, second.agreement, second.accuracy) == (0, 0, 1, 0.5)
    assert result.accuracies == {"original": 0.75, "merged": 0.5}
    assert result.agreement == 0.75
    assert result.accuracy_drop == 0.25
    assert result.unverified == ()


def test_relative_error_is_over_the_largest_reference():
    result = verify(IMAGES, None, {"original": EYE, "merged": 4 * EYE}, [subject(4 * EYE + 0.5)])
    assert result.comparisons[0].max_abs == 0.5
    assert result.comparisons[0].max_rel == 0.125


def test_images_beyond_the_batch_are_not_counted_twice():
    for batch in (1, 2, 3, 4, 7):
        table = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
        np.testing.assert_array_equal(infer_all(Scripted(table, batch), IMAGES)["logits"], table)


def test_worst_of_everything_merged_decides_the_drop():
    bad = EYE[[1, 1, 2, 3]]
    subjects = [subject(EYE), subject(bad, name="model.fp16.plan"), subject(bad, "original")]
    result = verify(IMAGES, np.arange(4), {"original": EYE, "merged": EYE}, subjects)
    assert result.accuracy_drop == 0.25
    gate(result, 0.25)
    with pytest.raises(AccuracyGateError, match=r"dropped by 25\.00% on 4 images, 24\.00%"):
        gate(result, 0.24)


def test_a_gain_passes_a_gate_of_zero():
    result = verify(
        IMAGES, np.arange(4), {"original": EYE[[1, 1, 2, 3]], "merged": EYE}, [subject(EYE)]
    )
    assert result.accuracy_drop == -0.25
    gate(result, 0.0)


def test_tolerance_is_a_gate_of_its_own():
    reference = {"original": EYE, "merged": EYE}
    exact = verify(IMAGES, None, reference, [subject(EYE + 0.5, tolerance=0.5)])
    gate(exact, None)
    with pytest.raises(AccuracyGateError, match=r"model\.onnx differs .* by 5\.00e-01"):
        gate(verify(IMAGES, None, reference, [subject(EYE + 0.5, tolerance=0.4)]), None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_fail_and_stay_valid_json(value):
    broken = EYE.copy()
    broken[1, 2] = value
    result = verify(IMAGES, None, {"original": EYE, "merged": EYE}, [subject(broken)])
    body = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert body["comparisons"][0]["finite"] is False
    assert body["comparisons"][0]["max_abs"] is None
    with pytest.raises(AccuracyGateError, match="differs"):
        gate(result, None)


def test_what_cannot_run_is_null_and_listed():
    broken = Subject("model.fp16.plan", "merged", refuses)
    result = verify(IMAGES, None, {"original": EYE, "merged": EYE}, [subject(EYE), broken])
    body = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert body["comparisons"][1] == {
        "name": "model.fp16.plan",
        "network": "merged",
        "reason": "no driver",
        "max_abs": None,
        "max_rel": None,
        "agreement": None,
        "kept": None,
        "accuracy": None,
        "metric": None,
        "tolerance": None,
        "finite": None,
    }
    assert body["unverified"] == [
        "model.fp16.plan was not run: no driver",
        "accuracy was not measured: there are no labels",
    ]
    assert body["accuracy"] == {"original": None, "merged": None, "drop": None}
    gate(result, None)
    with pytest.raises(AccuracyGateError, match="not measured"):
        gate(result, 0.1)


def test_one_reason_for_many_is_said_once():
    broken = [Subject(f"{name}.plan", "merged", refuses) for name in "abc"]
    result = verify(IMAGES, np.arange(4), {"original": EYE, "merged": EYE}, broken)
    assert result.unverified == ("a.plan, b.plan, c.plan were not run: no driver",)


def test_labels_beyond_the_classes_are_no_wrong_answers():
    reference = {"original": EYE, "merged": EYE}
    with pytest.raises(CorruptInputError, match="label 4, but the network tells 4 classes"):
        verify(IMAGES, np.array([0, 1, 2, 4]), reference, [])
    assert verify(IMAGES, np.array([0, 1, 2, 3]), reference, []).accuracies["merged"] == 1


def test_there_must_be_images():
    with pytest.raises(UsageError, match="at least one"):
        verify_batches(iter(()), {"original": None, "merged": None}, [], {"logits": "classes"})


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_figures_do_not_depend_on_the_batches(size):
    rng = np.random.default_rng(5)
    labels, (original, merged, built) = rng.integers(0, 4, 4), rng.normal(size=(3, 4, 4))
    reference = {"original": original, "merged": merged, "repaired": built}
    result = verify(IMAGES, labels, reference, [subject(built)], size)
    (found,) = result.comparisons
    assert result.images == 4
    assert found.max_abs == np.abs(built - merged).max()
    assert found.max_rel == np.abs(built - merged).max() / np.abs(merged).max()
    assert found.agreement == np.mean(built.argmax(1) == merged.argmax(1))
    assert found.accuracy == result.accuracies["repaired"] == np.mean(built.argmax(1) == labels)
    assert result.agreement == np.mean(original.argmax(1) == merged.argmax(1))


def test_no_batch_is_asked_for_before_the_last_one_was_compared():
    alive, most = [0], [0]

    class Counted(np.ndarray):
        def __del__(self):
            alive[0] -= 1

    def batches():
        for _ in range(5):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield IMAGES[:2].copy().view(Counted), None

    answer = {name: lambda images: {"logits": EYE[:2]} for name in ("original", "merged")}
    assert verify_batches(batches(), answer, [subject(EYE)], {"logits": "classes"}).images == 10
    assert most[0] <= 2  # the one that is compared, and the one that was compared before


def test_everything_that_was_opened_is_closed_also_after_a_failure():
    opened = [Scripted(EYE), Scripted(EYE)]
    pair = [Subject(str(i), "merged", lambda i=i: opened[i]) for i in range(2)]
    reference = {"original": EYE, "merged": EYE}
    with pytest.raises(CorruptInputError):
        verify(IMAGES, np.array([0, 1, 2, 9]), reference, pair)
    assert all(runner.closed for runner in opened)


def test_one_that_fails_on_the_way_has_no_figures():
    class Failing(Scripted):
        def infer(self, inputs):
            if inputs["input"].max() == 3:
                raise DeviceError("lost the GPU")
            return super().infer(inputs)

    runner = Failing(EYE, batch=1)
    failing = Subject("model.plan", "merged", lambda: runner)
    result = verify(IMAGES, None, {"original": EYE, "merged": EYE}, [failing, subject(EYE)], 2)
    assert result.comparisons[0].reason == "lost the GPU"
    assert result.comparisons[0].agreement is None and runner.closed
    assert result.comparisons[1].agreement == 1


def test_advice_is_what_to_type_about_the_one_that_differs():
    wrong = Subject("a.plan", "merged", lambda: Scripted(EYE + 1), 0.1, "type: polygraphy x")
    result = verify(IMAGES, None, {"original": EYE, "merged": EYE}, [subject(EYE), wrong])
    with pytest.raises(AccuracyGateError, match=r"a\.plan differs .*; type: polygraphy x, and see"):
        gate(result, None)


@pytest.fixture(scope="module")
def network():
    """A network, ten images, its torch outputs and its ONNX model of batch 4."""
    model, images = plain_chain(), example(batch=10, seed=3)
    with torch.no_grad():
        outputs = model(images).numpy()
    return images.numpy(), outputs, export_bytes(model, example(batch=4))


def test_real_models_on_onnx_runtime(network):
    images, outputs, model = network
    backend = get_backend("onnxruntime")
    half = to_precision(model, "fp16", keep_io=True)
    other = export_bytes(plain_chain(seed=1), example(batch=4))
    subjects = [
        Subject("original.onnx", "original", partial(backend.open, model), 1e-3),
        Subject("model.fp16.onnx", "merged", partial(backend.open, half)),
        Subject("wrong.onnx", "merged", partial(backend.open, other), 1e-3),
    ]
    reference = {"original": outputs, "merged": outputs}
    result = verify(images, outputs.argmax(1), reference, subjects)
    exact, rounded, wrong = result.comparisons
    assert exact.max_rel <= 1e-5  # float32 in another order
    assert exact.accuracy == exact.agreement == 1
    assert 1e-6 < rounded.max_rel <= 5e-3  # float16
    assert wrong.max_rel > 0.1
    with pytest.raises(AccuracyGateError, match=r"wrong\.onnx"):
        gate(result, None)


def test_real_engine(network, tmp_path):
    """Without a GPU it is listed as not run; an engine that was tampered with stops everything."""
    pytest.importorskip("tensorrt_rtx")
    images, outputs, model = network
    origin = Origin("a" * 64, "b" * 64, {}, None, "", 0)
    plan = write_engine(tmp_path, build_engine(model), origin, this_machine())
    reference = {"original": outputs, "merged": outputs}
    if NO_GPU:
        result = verify(
            images, None, reference, [Subject(plan.name, "merged", partial(open_engine, plan))]
        )
        assert "no CUDA driver or GPU" in result.comparisons[0].reason
        assert result.unverified[0].startswith("model.fp32.plan was not run: no CUDA driver")
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(UntrustedInputError, match="another engine"):
        verify(images, None, reference, [Subject(plan.name, "merged", partial(open_engine, plan))])


def test_engine_of_another_version_is_not_loaded(network, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    images, outputs, model = network
    origin = Origin("a" * 64, "b" * 64, {}, None, "", 0)
    build = build_engine(model)
    object.__setattr__(build, "version", "0.9")
    plan = write_engine(tmp_path, build, origin, this_machine())
    result = verify(
        images,
        None,
        {"original": outputs, "merged": outputs},
        [Subject(plan.name, "merged", partial(open_engine, plan))],
    )
    assert "built with tensorrt_rtx 0.9, and here is" in result.comparisons[0].reason


def test_one_output_is_not_judged_by_its_only_class():
    table = np.float32([[2], [-3], [4], [5]])
    reference = {"original": table, "merged": -table}
    result = verify(IMAGES, None, reference, [subject(0.001 * table, "original"), subject(-table)])
    assert result.agreement == 0
    assert [c.agreement for c in result.comparisons] == [0, 1]
