"""Both pages: every figure is one of the data, every name is escaped, every gap is a sentence."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.report import fakes
from trt_layermerge.core.candidate import finish
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Barrier, Block
from trt_layermerge.errors import DeviceError
from trt_layermerge.report.answers import (
    accuracy,
    answers,
    budget,
    gaps,
    next_steps,
    prediction,
    shipping,
    speed,
)
from trt_layermerge.report.data import (
    Accuracy,
    Bench,
    Epoch,
    Finalist,
    PredictionError,
    RunReport,
    Timing,
)
from trt_layermerge.report.page import view_of, write_report
from trt_layermerge.report.templates import literal

HOSTILE = '<img src=x onerror="alert(1)"> | `a` *b* [c](d) </td></svg><script>1</script> $e$'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Outline(HTMLParser):
    """Collects tags, identifiers, links and text, and checks that tags are nested properly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [v or "" for name, v in attrs if name in ("href", "src", "xlink:href")]


def _outline(report: RunReport) -> Outline:
    outline = Outline()
    outline.feed(fakes.html(report))
    outline.close()
    assert not outline.open
    return outline


def _text(report: RunReport) -> str:
    return re.sub(r"[ \n]+", " ", "|".join(_outline(report).text))


def _hostile(report: RunReport) -> RunReport:
    units = tuple(replace(u, name=f"{u.name}{HOSTILE}") for u in report.graph.units)
    graph = replace(report.graph, units=units, barriers=(Barrier(HOSTILE, HOSTILE, 3),))
    return replace(
        report,
        title=HOSTILE,
        model=HOSTILE,
        graph=graph,
        finalists=(Finalist(HOSTILE, 1.0, 1.1, 2.0),),
        accuracies={**report.accuracies, HOSTILE: Accuracy(0.5, 10)},
        accuracy_data=HOSTILE,
        certificate={HOSTILE: HOSTILE, "rows": [{HOSTILE: HOSTILE}]},
        unverified=(HOSTILE,),
        versions={HOSTILE: HOSTILE},
        recipe=f"```\n{HOSTILE}\n````",
        stage_seconds={HOSTILE: 1.0},
    )


@pytest.mark.parametrize("run", [fakes.resnet_run(), fakes.mobilenet_run()], ids=["full", "bare"])
def test_html_is_sound_and_asks_for_nothing(run: RunReport) -> None:
    outline = _outline(run)
    assert len(outline.ids) == len(set(outline.ids))
    assert {"link", "iframe", "object", "img"}.isdisjoint(outline.tags)
    assert outline.tags.count("script") == 1
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert outline.tags.count("h1") == 1


def test_hostile_names_are_text_in_html() -> None:
    plain_tags = sorted(set(_outline(fakes.resnet_run()).tags))
    outline = _outline(_hostile(fakes.resnet_run()))
    assert sorted(set(outline.tags)) == plain_tags
    # 19 boxes in each of two pictures, 11 names in the table of changes, 3 titles and lead, 3 on
    # the data of accuracies, 2 names of a network, and 13 in the tables below.
    assert "".join(outline.text).count(HOSTILE) == 2 * 19 + 11 + 3 + 3 + 2 + 13


def test_hostile_names_are_text_in_markdown() -> None:
    page = fakes.markdown(_hostile(fakes.resnet_run()))
    inside_code = re.compile(r"^(`{3,})\n.*?^\1$", flags=re.DOTALL | re.MULTILINE)
    code = inside_code.findall(page)
    assert code == ["```", "`````", "```", "```", "```"]  # a plan, the recipe, three steps
    rest = inside_code.sub("", page)
    assert "<" not in rest
    assert not re.search(r"(?<!\\)`|(?<!\\)\$", rest)
    bars = [re.sub(r"\\.", "", line).count("|") for line in rest.splitlines()]
    for (before, here), line in zip(itertools.pairwise(bars), rest.splitlines()[1:], strict=True):
        assert here == before or 0 in (before, here), line


def test_markdown_text_is_literal() -> None:
    assert literal("a|b *c* _d_ `e` [f](g)\n# <h> & \\") == (
        r"a\|b \*c\* \_d\_ \`e\` \[f\](g) \# &lt;h&gt; &amp; \\"
    )


def test_first_screen_holds_the_figures_of_the_run() -> None:
    run = fakes.resnet_run()
    found = [answer.figure for answer in (speed(run), accuracy(run), budget(run), prediction(run))]
    assert found == ["2.04x", "−0.3 points", "met", "−0.4 %"]
    assert "2.01x to 2.07x (10 % to 90 % of 40 paired rounds)" in speed(run).detail
    assert "90.2 % → 89.9 % on 5\u2009000 test images" in accuracy(run).detail
    assert "measured 0.4135 ms, 1.5 % under the budget of 0.4200 ms" in budget(run).detail
    assert "median error 2.0 %, worst 2.8 %" in prediction(run).detail


def test_figures_of_the_page_are_those_of_the_data() -> None:
    run = fakes.resnet_run()
    text = _text(run)
    for f in run.finalists:
        row = f"{f.label}|{f.predicted_ms:.4f} ms|{f.measured_ms:.4f} ms|"
        error = 100 * (f.predicted_ms / f.measured_ms - 1)
        loss = 19 - (f.score or 0)  # the original's score is 19
        assert f"{row}{error:+.1f} %|{loss:.4f}".replace("-", "−") in text
    for e in run.history:
        assert f"{e.epoch}|{e.loss:g}|{100 * (e.accuracy or 0):.2f} %" in text
    # By hand: 19 units and 2 projections before; 10 boxes and no projection after.
    assert "convolutions of the chain, projections included|21|10" in text
    assert "original|90.18 %|89.3 to 91.0 %|5\u2009000" in text
    assert "max_rel_error|3.1e-15" in text
    assert "time of finetune|12 min 05 s" in text
    assert "seed|7" in text


def test_both_twins_say_the_same() -> None:
    run = fakes.resnet_run()
    page = fakes.markdown(run)
    headings = re.findall(r"<h2>([^<]*)</h2>", fakes.html(run))
    assert headings[:2] == ["Can I ship it?", "Not verified"]
    for heading in headings[2:]:
        assert f"## {heading}" in page
    assert f"**Can I ship it? {shipping(run).figure}**: {shipping(run).detail}." in page
    for row in view_of(run).choice:
        assert f"| {' | '.join(map(literal, row.cells))} |" in page
    for step in view_of(run).steps:
        assert f"{step.words}:\n\n```\n{step.command}\n```" in page
    for answer in view_of(run).answers:
        assert f"| {answer.question} | {answer.figure} | {literal(answer.detail)} |" in page


def test_missing_parts_are_sentences() -> None:
    text = _text(fakes.mobilenet_run())
    for sentence in (
        "Neither latency nor accuracy of the two networks was recorded",
        "Accuracy was not measured",
        "The frontier of this run was not recorded",
        "No plan of this run was built whole and measured",
        "The merged network was not fine-tuned",
        "The merge was not certified.",
        "The exported network was not verified",
        "No engine was built in this run.",
        "No recipe was recorded.",
    ):
        assert sentence in text
    assert len(gaps(fakes.mobilenet_run())) == 5
    assert gaps(fakes.resnet_run()) == fakes.resnet_run().unverified


def test_a_complete_run_without_gaps_says_so() -> None:
    run = replace(fakes.resnet_run(), unverified=())
    assert "Nothing is known to be unverified." in _text(run)


def test_what_the_verification_left_open_is_on_the_first_screen_once() -> None:
    run = fakes.resnet_run()
    said = ["No labels: accuracy is unknown.", run.unverified[0]]
    run = replace(run, verify={"schema": "trt-layermerge/verify@1", "unverified": said})
    assert gaps(run) == (run.unverified[0], said[0])
    assert "verify@1" not in _text(run)


BENCH = fakes.resnet_run().bench
assert BENCH


def checked_run() -> RunReport:
    """A run with nothing left to check."""
    verify = {"comparisons": [{}, {}]}
    return replace(
        fakes.resnet_run(), unverified=(), verify=verify, certificate={"ok": True}, engine=None
    )


def test_what_was_all_measured_and_checked_can_be_shipped() -> None:
    run = checked_run()
    found = shipping(run)
    assert (found.figure, found.verdict) == ("Yes", "good")
    assert found.detail.endswith("2.04x faster, −0.3 points of quality, within the budget")
    assert next_steps(run)[0].command == "trt-layermerge package --run NAME --for plain"


def test_a_failed_gate_is_the_first_thing_on_both_pages() -> None:
    gate = "accuracy dropped by 7.00% on 96 images, 1.00% is allowed"
    run = replace(checked_run(), failed_gates=(gate,))
    assert (shipping(run).figure, shipping(run).verdict) == ("No", "bad")
    for page in (fakes.html(run), fakes.markdown(run)):
        said = page[page.index("Can I ship it?") :]
        assert said.index(gate) < said.index("How much faster?")
    assert answers(run)[3].verdict == "bad"
    # By hand: half of what 2.04x gained, and twice the eight epochs.
    commands = [
        step.command.removeprefix("trt-layermerge run --run NAME ") for step in next_steps(run)
    ]
    assert commands == ["--speedup 1.52", "--set finetune.options.epochs=16"]


def test_a_merge_that_its_certificate_rejects_is_not_shipped() -> None:
    run = replace(checked_run(), certificate={"ok": False})
    assert (shipping(run).figure, answers(run)[3].verdict) == ("No", "bad")


@pytest.mark.parametrize(
    ("changes", "figure", "words"),
    [
        ({"unverified": ("one",)}, "Not proven", "but 1 thing was not checked"),
        ({"verify": None, "bench": None}, "Not proven", "but 2 things were not checked"),
        ({"accuracies": {}}, "Not proven", "cost not measured"),
        ({"bench": replace(BENCH, low=0.98)}, "Not proven", "but 1 thing was not checked"),
        ({"bench": replace(BENCH, low=0.9, high=0.98)}, "No", "it is not faster"),
        ({"budget_ms": 0.4}, "Not yet", "3.4 % over the budget"),
        ({"budget_ms": None}, "Yes", "without a budget"),
        (
            {"accuracies": {"original": Accuracy(0.9, 5000), "merged": Accuracy(0.8, 5000)}},
            "Your decision",
            "−10.0 points of quality",
        ),
    ],
)
def test_what_is_not_known_is_no_yes(changes: dict[str, Any], figure: str, words: str) -> None:
    run = checked_run()
    if "budget_ms" in changes:
        changes = {"summary": {**run.summary, **changes}}
    found = shipping(replace(run, **changes))
    assert found.figure == figure
    assert words in found.detail


def test_latencies_that_were_made_up_get_no_tick() -> None:
    run = replace(checked_run(), device=replace(fakes.DEVICE, backend="fake"))
    assert [answer.verdict for answer in answers(run)] == ["open"] * 4
    assert shipping(run).figure == "Not proven"


def test_a_tasks_own_figure_is_what_it_cost() -> None:
    metric = {"name": "mIoU", "original": 0.71, "repaired": 0.5, "merged": 0.69}
    run = replace(checked_run(), accuracies={})
    found = accuracy(replace(run, summary={**run.summary, "metric": metric}))
    assert (found.figure, found.detail) == ("−0.02", "mIoU: 0.71 → 0.69")


def test_a_missed_budget_says_by_how_much() -> None:
    run = fakes.resnet_run()
    run = replace(run, summary={**run.summary, "budget_ms": 0.4})
    found = budget(run)
    assert (found.figure, found.verdict) == ("missed", "bad")
    assert "measured 0.4135 ms, 3.4 % over the budget of 0.4000 ms" in found.detail


def test_a_clear_loss_is_marked_and_an_unclear_one_is_not() -> None:
    run = fakes.resnet_run()
    assert accuracy(run).verdict == "open"
    worse = {"original": Accuracy(0.9, 5000), "merged": Accuracy(0.8, 5000)}
    assert accuracy(replace(run, accuracies=worse)).verdict == "bad"


def test_without_labels_it_is_told_which_share_of_the_answers_is_kept() -> None:
    run = replace(fakes.resnet_run(), accuracies={}, verify={"agreement": 0.925, "images": 1200})
    found = accuracy(run)
    assert (found.figure, found.verdict) == ("92.5 %", "open")
    for share, asked, verdict in ((0.467, None, "bad"), (0.925, 0.95, "bad"), (0.97, 0.95, "good")):
        told = {"agreement": share, "images": 1200, "min_agreement": asked}
        assert accuracy(replace(run, verify=told)).verdict == verdict
    assert found.question == "What did it keep?"  # 92.5 % is what was not lost
    assert "of 1\u2009200 images get the same answer as before" in found.detail


def test_predictions_beyond_the_goal_are_marked() -> None:
    run = fakes.resnet_run()
    assert prediction(run).verdict == "good"
    for error in (PredictionError(9, 0.06, 0.09), PredictionError(9, 0.04, 0.11)):
        assert prediction(replace(run, prediction=error)).verdict == "bad"


def test_a_race_is_told_by_the_mean_of_its_rungs() -> None:
    run = fakes.resnet_run()
    assert "raced:" not in _text(run)
    finalists = (
        Finalist("first", 1.0, 1.1, 2.0, True, -0.25, (0.5, 0.625, 0.75)),
        Finalist("short", 1.0, 1.1, 2.0, False, -0.125, (0.375,)),
        Finalist("fallen", 1.0, 1.1, 2.0, False, None, (0.5, None)),
        Finalist("idle", 1.0, 1.1, 2.0),
    )
    page = fakes.markdown(replace(run, finalists=finalists))
    assert "3 finalists raced: each was trained a little" in page
    rows = [
        [cell.strip() for cell in line.split("|")[5:9]]
        for line in page.splitlines()
        if re.match(r"\| (first|short|fallen|idle) ", line)
    ]
    assert rows == [
        ["17.0000", "-0.2500", "0.6250, 3 rungs", "chosen"],
        ["17.0000", "-0.1250", "0.3750, 1 rung", ""],
        ["17.0000", "–", "diverged", ""],
        ["17.0000", "–", "–", ""],
    ]


def test_a_kind_that_the_pages_do_not_know_appears_by_its_name() -> None:
    run = fakes.resnet_run()
    graph = run.graph
    convs = (fakes.conv(16, 4, 3, 16), fakes.conv(4, 16, 1, 16))
    plan = MergePlan.of(graph, [finish(graph, Block(1, 2), "unheard", (), convs)])
    assert "(unheard)" in _text(replace(run, plan=plan))
    row = "| 1 | blocks.0.conv1 | unheard | none | 16&gt;4 k3x3 @16x16 + 4&gt;16 k1x1 @16x16 relu |"
    assert row in fakes.markdown(replace(run, plan=plan))


def test_nothing_that_is_not_finite_becomes_a_figure() -> None:
    nan, inf = math.nan, math.inf
    bad = Timing(nan, inf, nan, inf)
    run = replace(
        fakes.resnet_run(),
        summary={"budget_ms": nan, "predicted_ms": inf, "speedup": nan},
        bench=Bench("fp32", bad, bad, nan, nan, inf),
        finalists=(Finalist("a", nan, 0.0, nan, chosen=True), Finalist("b", inf, 1.0)),
        prediction=PredictionError(2, nan, inf, nan),
        accuracies={"original": Accuracy(nan, 0), "merged": Accuracy(inf, 10)},
        history=(Epoch(1, nan, nan), Epoch(2, inf, inf)),
        certificate={"max_rel_error": nan},
        stage_seconds={"search": nan},
    )
    text = _text(run)
    assert not re.search(r"\b(nan|inf)\b", text)
    assert "not a number" in text
    found = [answer.figure for answer in view_of(run).answers]
    assert found == ["not measured", "not measured", "no budget", "not all"]
    assert prediction(run).figure == "unknown"


def test_long_histories_and_tables_are_cut_and_say_so() -> None:
    rows = [{"block": i} for i in range(130)]
    history = tuple(Epoch(i, 1 / i, 0.5 + (i == 20) / 10) for i in range(1, 41))
    text = _text(replace(fakes.resnet_run(), certificate={"blocks": rows}, history=history))
    assert "block|0|1|2|" in text
    assert "|98|99|30 more rows stand in the file." in text
    assert "First, best and last of 40 epochs" in text
    assert "20|0.05|60.00 %" in text


def test_pages_and_pictures_are_written_and_repeat_to_the_byte(tmp_path: Path) -> None:
    run = fakes.resnet_run()
    pages = write_report(run, tmp_path / "a")
    again = write_report(run, tmp_path / "b")
    assert [p.name for p in pages[:2]] == ["report.html", "report.md"]
    assert sorted(pages) == sorted((tmp_path / "a").rglob("*.*"))
    files = sorted(p.relative_to(tmp_path / "a") for p in pages)
    assert [str(f) for f in files] == [
        "pictures/accuracy.svg",
        "pictures/chain.svg",
        "pictures/comparison.svg",
        "pictures/frontier.svg",
        "pictures/loss.svg",
        "pictures/prediction.svg",
        "report.html",
        "report.md",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    linked = re.findall(r"\]\(([^)]+\.svg)\)", again[1].read_text(encoding="utf-8"))
    assert len(linked) == 6
    assert all((tmp_path / "b" / link).is_file() for link in linked)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(DeviceError, match="cannot write"):
        write_report(fakes.mobilenet_run(), blocked)
