"""The plans to choose from: what a row says of each, by hand."""

from __future__ import annotations

from dataclasses import replace

from tests.report import fakes
from trt_layermerge.core.candidate import Change
from trt_layermerge.report.choice import looks_of, rows_of
from trt_layermerge.report.data import Stop

RUN = fakes.resnet_run()


def test_a_row_tells_gain_cost_and_what_goes() -> None:
    first, *_, last = rows_of(RUN)
    # 0.8421 ms against 0.412 ms; 19 less 17.31; 19 units of which ten convolutions stay.
    assert first.cells[:5] == ("2.04x", "0.4120 ms", "0.4135 ms", "1.69", "19 → 10")
    assert first.cells[5] == (
        "merged exactly: 1–2, 9–10; left out: 3–4, 11; replaced by a fitted conv: 7–8, 13–16"
    )
    assert first.chosen and first.command == "trt-layermerge run --run NAME --speedup 2.04"
    assert last.cells == ("1.00x", "0.8400 ms", "not measured", "0", "19 → 19", "nothing")


def test_states_are_by_unit() -> None:
    names = [look.label for look in looks_of(RUN)]
    merged, fitted, gone = (
        f"k{names.index(label)}"
        for label in ("merged exactly", "replaced by a fitted conv", "left out")
    )
    states = rows_of(RUN)[0].states
    assert len(states) == 19
    assert states[:6] == (
        "",
        f"{merged} first",
        f"{merged} last",
        f"{gone} first gone",
        f"{gone} last gone",
        "",
    )
    assert states[9:12] == (f"{merged} first gone", f"{merged} last", f"{gone} first last gone")
    assert states[13:17] == (f"{fitted} first", fitted, fitted, f"{fitted} last")


def test_one_plan_or_none_is_no_choice() -> None:
    assert rows_of(replace(RUN, stops=RUN.stops[:1])) == ()
    assert rows_of(replace(RUN, stops=(Stop(float("nan"), 1.0, ()), *RUN.stops[:1]))) == ()
    assert 'id="pick"' not in fakes.html(fakes.mobilenet_run())


def test_a_kind_that_nobody_knows_appears_by_its_name() -> None:
    run = replace(RUN, stops=(*RUN.stops[:1], Stop(0.7, 18.0, (Change(0, 2, "odd", (), 1),))))
    assert rows_of(run)[1].cells[5] == "odd: 0–1"
    assert looks_of(run)[-1].label == "odd"
