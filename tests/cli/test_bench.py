"""``bench`` at the command line: its gate is a key of the recipe, trust is not."""

from __future__ import annotations

import pytest

from tests.cli.fakes import FakePipeline
from trt_layermerge.cli.main import main
from trt_layermerge.errors import LatencyGateError
from trt_layermerge.pipeline.options import Reporter


def test_the_limit_goes_into_the_recipe_and_trust_does_not(fake: FakePipeline) -> None:
    fake.result = {"comparable": True, "precisions": [], "int8": None}
    assert main(["bench", "--run", "x", "--max-latency-ms", "2.5", "--trust-engine"]) == 0
    ((stage, options),) = fake.asked
    assert stage == "bench" and options.trust_engine
    assert options.overrides == {"verify.max_latency_ms": 2.5}
    assert main(["bench", "--run", "x"]) == 0
    assert not fake.asked[1][1].trust_engine and fake.asked[1][1].overrides == {}


def test_a_network_that_is_too_slow_ends_with_six(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_slow(_: Reporter) -> None:
        raise LatencyGateError("the merged network takes 3 ms")

    fake.work = too_slow
    assert main(["bench", "--run", "x", "--max-latency-ms", "2.5"]) == 6
    assert "takes 3 ms" in capsys.readouterr().err
