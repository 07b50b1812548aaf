"""The reporter: silent bars off a terminal, bars after two seconds on one, text taken literally."""

from __future__ import annotations

import io

from rich.console import Console

from trt_layermerge.cli.console import RichReporter, error_console


class Clock:
    """Tells the time that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal(file: io.StringIO) -> Console:
    return Console(file=file, force_terminal=True, width=100, markup=False)


def test_a_log_gets_a_line_every_half_a_minute_and_no_bar() -> None:
    file, clock = io.StringIO(), Clock()
    with RichReporter(error_console(file), clock=clock) as reporter:
        for step in range(16):  # 5 of 100 steps were done before
            clock.now = 10.0 * step
            reporter.progress("scoring", 5 + step, 100)
        reporter.progress("scoring", 100, 100)
        clock.now = 1000.0
        reporter.progress("merging", 0, 2)
        clock.now = 1029.0
        reporter.progress("merging", 1, 2)
    assert file.getvalue().splitlines() == [
        "  scoring 8/100, 15 min left",
        "  scoring 11/100, 15 min left",
        "  scoring 14/100, 14 min left",
        "  scoring 17/100, 14 min left",
        "  scoring 20/100, 13 min left",
    ]


def test_a_bar_appears_after_two_seconds_and_goes_when_done() -> None:
    file, clock = io.StringIO(), Clock()
    with RichReporter(terminal(file), clock=clock) as reporter:
        reporter.progress("measuring", 0, 5)
        clock.now = 1.9
        reporter.progress("measuring", 1, 5)
        assert reporter._bars.tasks == []
        clock.now = 2.1
        reporter.progress("measuring", 2, 5)
        assert [(t.description, t.completed, t.total) for t in reporter._bars.tasks] == [
            ("measuring", 2, 5)
        ]
        reporter.progress("measuring", 5, 5)
        assert reporter._bars.tasks == []
    assert "measuring" in file.getvalue()


def test_work_that_starts_again_gets_two_new_seconds() -> None:
    clock = Clock()
    with RichReporter(terminal(io.StringIO()), clock=clock) as reporter:
        for start in (0.0, 100.0):
            clock.now = start
            reporter.progress("scoring", 0, 2)
            clock.now = start + 1
            reporter.progress("scoring", 1, 2)
            assert reporter._bars.tasks == []
            reporter.progress("scoring", 2, 2)


def test_lines_of_stages() -> None:
    file = io.StringIO()
    with RichReporter(error_console(file)) as reporter:
        reporter.stage("latency", "run")
        reporter.stage("latency", "done", 12.34, "[red]40 specs[/red]")
        reporter.stage("search", "skip", None, "up to date")
    assert file.getvalue().splitlines() == [
        "✓ latency       12.3 s  [red]40 specs[/red]",
        "= search                up to date",
    ]


def test_verbose_says_when_a_stage_starts_and_quiet_says_nothing() -> None:
    for verbose, lines in ((1, ["… latency"]), (-1, [])):
        file = io.StringIO()
        with RichReporter(error_console(file), verbose) as reporter:
            reporter.stage("latency", "run")
        assert [line.rstrip() for line in file.getvalue().splitlines()] == lines
