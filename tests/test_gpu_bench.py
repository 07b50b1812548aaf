"""The page about a GPU, from figures made up by hand: no GPU has run it yet."""

from __future__ import annotations

from tests.bench.bm_gpu import PAGE, searched_lines
from tests.test_predict_bench import case
from trt_layermerge.core.jsonio import Json

HEADER: Json = {
    "device": "a card",
    "precision": "fp16",
    "cpu": "a processor",
    "cores": 2,
    "versions": {"python": "3.11", "torch": "2.4", "onnxruntime": "1.18"},
    "commit": "abc",
    "load": 0.5,
}
SEARCHED: Json = {
    "original_ms": 2.0,
    "method": "graph",
    "plans": [
        {
            "wanted": 1.5,
            "promised_ms": 1.3,
            "ms": 1.25,
            "speedup": {"value": 1.6, "p10": 1.55, "p90": 1.62},
        }
    ],
    "doubts": ["clocks are not locked"],
}


def test_a_plan_is_told_with_promise_and_measurement() -> None:
    lines = searched_lines(SEARCHED)
    assert lines[0] == "Original 2.0000 ms, timed by graph."
    assert lines[4] == "| 1.5x | 1.3000 | 1.2500 | +4.0% | 1.60x (1.55 to 1.62) |"
    assert lines[-1] == "- clocks are not locked"


def test_the_page_has_every_network_and_where_it_was_measured() -> None:
    rows = [{"case": case(n).row(), "searched": SEARCHED} for n in ("resnet34-full",) * 2]
    text = PAGE.text(HEADER, rows)
    assert "`python -m tests.bench.bm_gpu` at `abc` on a processor" in text
    assert "Device: a card, fp16, batch 1.\n" in text
    assert text.count("## resnet34, full rules\n") == text.count("| 1.5x | 1.3000 |") == 2
