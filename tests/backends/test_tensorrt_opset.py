"""The opset of a model, read from its bytes: against onnx itself, and what is made of it."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from tests.backends.fake_tensorrt import TENSORRT, fake_tensorrt
from trt_layermerge.backends.tensorrt import build_engine
from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.backends.tensorrt_opset import check_opset, opset_of
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.measure.spec_model import spec_model

SPEC = ConvSpec(8, 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 14, 14)


def model_of(*opsets: tuple[str, int]) -> bytes:
    graph = helper.make_graph([], "empty", [], [])
    imports = [helper.make_opsetid(*opset) for opset in opsets]
    return helper.make_model(graph, opset_imports=imports).SerializeToString()


@given(st.integers(1, 2**40), st.text(max_size=300))
def test_it_is_what_onnx_reads(version: int, producer: str) -> None:
    model = onnx.load_model_from_string(model_of(("", version)))
    model.producer_name = producer
    assert opset_of(model.SerializeToString()) == version


def test_the_domain_of_onnx_counts_and_no_other() -> None:
    assert opset_of(model_of(("com.microsoft", 1), ("", 17))) == 17
    assert opset_of(model_of(("ai.onnx", 18), ("ai.onnx.ml", 3))) == 18
    assert opset_of(model_of(("com.microsoft", 1))) is None
    assert opset_of(model_of()) is None


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_real_models(precision) -> None:
    assert opset_of(spec_model(SPEC, precision, 1, "fp16")) == (19 if precision == "int8" else 17)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_do_no_harm(data: bytes) -> None:
    assert opset_of(data) is None or isinstance(opset_of(data), int)


def test_a_model_that_is_cut_off_does_no_harm() -> None:
    whole = spec_model(SPEC, "fp32", 1)
    for size in (0, 1, 2, len(whole) // 2, len(whole) - 1):
        assert opset_of(whole[:size]) is None


@pytest.mark.parametrize("version", ["8.5.2", *TENSORRT])
def test_eight_is_told_before_its_parser_is_asked(version: str) -> None:
    api = TensorRTApi(fake_tensorrt(version), "tensorrt")
    check_opset(api, spec_model(SPEC, "fp16", 1))
    check_opset(api, model_of(("", 18)))
    model = spec_model(SPEC, "int8", 1, "fp16")
    if not version.startswith("8."):
        check_opset(api, model)
        return
    with pytest.raises(UnsupportedModelError, match=rf"^tensorrt {version} reads .*int8.*fp16"):
        build_engine(model, api=api)
    assert api.module.built == []
