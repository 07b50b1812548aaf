"""Speed at every precision, the mark where latencies do not compare, and what int8 cost."""

from __future__ import annotations

from dataclasses import replace

from tests.report import fakes
from trt_layermerge.report.data import RunReport

TWICE, NEARLY = "2.04x (2.01x to 2.07x)", "1.97x (1.90x to 2.00x)"


def section(run: RunReport, heading: str) -> list[str]:
    """Returns the blocks of Markdown below a heading; none where there is no such section."""
    _, _, rest = fakes.markdown(run).partition(f"## {heading}\n\n")
    return [block for block in rest.partition("\n\n## ")[0].split("\n\n") if block]


def cells(table: str) -> list[list[str]]:
    """Returns the cells of a table in Markdown, its rule left out."""
    rows = [[cell.strip() for cell in row[1:-1].split("|")] for row in table.splitlines()]
    return [rows[0], *rows[2:]]


def without(run: RunReport, **changes: object) -> RunReport:
    assert run.bench is not None
    return replace(run, bench=replace(run.bench, **changes))  # type: ignore[arg-type]


def test_every_precision_has_both_networks_side_by_side() -> None:
    run = fakes.resnet_run()
    table, costs, notes = section(run, "Speed at every precision")
    assert cells(table) == [
        ["precision", "network", "median", "90 %", "99 %", "images / s", "speed-up"],
        ["fp16", "original", "0.8421 ms", "0.8610 ms", "0.9020 ms", "1 188", ""],
        ["", "merged", "0.4135 ms", "0.4203 ms", "0.4461 ms", "2 418", TWICE],
        ["int8", "original", "0.6100 ms", "0.6200 ms", "0.6300 ms", "1 639", ""],
        ["", "merged", "0.3100 ms", "0.3200 ms", "0.3300 ms", "3 226", NEARLY],
    ]
    assert table.splitlines()[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    head, first, *_, last = cells(costs)
    assert head == ["precision", "network", "launch by the host", "power", "energy of a run"]
    assert first == ["fp16", "original", "0.0310 ms", "12.2 W", "6.88 mJ"]
    assert last == ["", "merged", *["not measured"] * 3]
    assert run.bench and notes == "\n".join(f"- {note}" for note in run.bench.notes)


def test_what_was_not_read_anywhere_has_no_table() -> None:
    run = without(fakes.resnet_run(), pairings=fakes.PAIRINGS[1:], notes=())
    assert len(section(run, "Speed at every precision")) == 1
    assert section(without(run, pairings=()), "Speed at every precision") == []
    assert section(fakes.mobilenet_run(), "Speed at every precision") == []


def test_latencies_that_do_not_compare_are_marked_above_everything_on_both_pages() -> None:
    page = fakes.html(fakes.resnet_run())
    verdict, notice, answers = (page.index(f'class="{c}') for c in ("verdict", "notice", "answers"))
    assert verdict < notice < answers
    assert "do not compare" in page and "the GPU&#39;s clock is free" in page
    words = "> **Mind:** the latencies of this page do not compare"
    assert words in fakes.markdown(fakes.resnet_run())


def test_comparable_latencies_have_no_mark() -> None:
    for run in (without(fakes.resnet_run(), reason=None), fakes.mobilenet_run()):
        assert 'class="notice"' not in fakes.html(run)
        assert "**Mind:**" not in fakes.markdown(run)


INT8 = "What rounding to int8 costs"


def test_int8_tells_what_it_cost_and_what_stayed_in_float() -> None:
    costs, method, words, kept = section(fakes.resnet_run(), INT8)
    row = ["merged", "89.92 %", "89.51 %", "98.75 %", "1 000", "1", "1"]
    assert cells(costs)[1:] == [row]
    assert "entropy on 512 training images" in method and "1.00 % is lost" in method
    assert words == "Left in float in the merged network:"
    assert cells(kept)[1:] == [["/stem/Conv", "Conv", "14.2", "0.03125"]]


def test_a_network_that_is_all_int8_says_so_and_one_that_is_none_has_no_section() -> None:
    found = {**fakes.CALIBRATION["networks"]["merged"], "keep_float": []}  # type: ignore[index]
    run = replace(fakes.resnet_run(), calibration={"networks": {"original": found}})
    assert section(run, INT8)[-1] == "Every layer of the original network is in int8."
    nothing = {"reason": "nothing is int8", "networks": {}}
    assert section(replace(run, calibration=nothing), INT8) == []
    assert section(replace(run, calibration=None), INT8) == []
