"""Exit codes, and what goes to stdout and to stderr."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from tests.cli.fakes import FakePipeline, engine
from trt_layermerge import __version__, errors
from trt_layermerge.cli.app import VERBS
from trt_layermerge.cli.main import main, verbosity
from trt_layermerge.pipeline.options import Reporter

MERGE = ["merge", "--run", "x"]


def failing(error: BaseException) -> FakePipeline:
    def work(reporter: Reporter) -> None:
        raise error

    return FakePipeline(work=work)


ENDINGS = [
    (errors.LayerMergeError("some [bold]text[/bold] :smile:"), 1),
    (errors.UsageError("wrong"), 2),
    (errors.UnsupportedModelError("unknown"), 3),
    (errors.DeviceError("no device"), 4),
    (errors.MissingDependencyError("tensorrt", "building", "tensorrt"), 4),
    (errors.AccuracyGateError("bad"), 5),
    (errors.InfeasibleBudgetError("slow"), 6),
    (errors.UntrustedInputError("pickle"), 7),
]


@pytest.mark.parametrize(("error", "code"), ENDINGS)
def test_an_error_for_users_is_its_text_and_its_code(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    fake.work = failing(error).work
    assert main(MERGE) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {error}\n"  # one unwrapped line, markup taken literally


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "type the same command to continue"),
        (MemoryError(), 4, "out of memory"),
        (OSError(errno.ENOSPC, "full", "/some/file"), 4, "the disk is full at /some/file"),
        (PermissionError(errno.EACCES, "denied", "/some/file"), 2, "/some/file: denied"),
        (
            FileNotFoundError(errno.ENOENT, "none", "/some/file"),
            4,
            "/some/file cannot be used: none",
        ),
        (OSError("odd"), 4, "cannot be used: OSError: odd"),
        (RuntimeError("can't allocate memory: 9 bytes"), 4, "out of memory"),
        (RuntimeError("could not create a primitive"), 4, "out of memory"),
        (SystemExit(0), 2, "failed: it ends the program (SystemExit: 0); this is no code of"),
        (GeneratorExit(), 2, "failed: GeneratorExit; this is no code of"),
        (ZeroDivisionError("by zero"), 2, "failed: ZeroDivisionError: by zero; this is no code of"),
    ],
)
def test_other_failures_are_explained(
    fake: FakePipeline,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    text: str,
) -> None:
    fake.work = failing(error).work
    assert main(MERGE) == code
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err


def test_what_fails_in_the_package_itself_is_a_bug(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.result = {"incomplete": None}
    assert main(["bench", "--run", "x"]) == 1
    assert "KeyError: 'comparable'. This is a bug" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["-vv"], ["-v", "-v"], ["--verbose", "-v"]])
def test_two_v_show_the_traceback(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    fake.work = failing(errors.UsageError("wrong")).work
    assert main([*MERGE, *flags]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: wrong\n")


def test_verbosity_counts_flags_and_nothing_else() -> None:
    assert verbosity(["merge", "-v", "--run", "vv", "-vvv", "--val", "-"]) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-verb"],
        ["merge"],
        [*MERGE, "--batch", "0"],
        [*MERGE, "--no-such-option"],
        ["search", "--run", "x", "--mode", "sideways"],
        [*MERGE, "--input", "3x224x224"],
        [*MERGE, "--input", "1x3x0x224"],
        ["merge", "--run", ".."],
        ["run"],
        ["run", "--run", "x", "--from", "nowhere"],
    ],
)
def test_what_cannot_be_meant_ends_with_2(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err
    assert fake.asked == []


def test_json_is_all_that_stands_on_stdout(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.result = {"max_rel_error": 1e-9, "blocks": [{"start": 1}]}

    def work(reporter: Reporter) -> None:
        reporter.stage("merge", "run")
        reporter.progress("merging", 1, 2)
        reporter.note("a note")
        reporter.stage("merge", "done", 1.25, "3 blocks")

    fake.work = work
    assert main([*MERGE, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == fake.result
    assert "a note" in err
    assert "1.2 s  3 blocks" in err


def test_quiet_says_nothing_but_the_result(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.result = {"max_rel_error": 0.5}
    fake.work = lambda reporter: reporter.note("a note")
    assert main([*MERGE, "-q"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == ["max", "rel", "error", "0.5"]
    assert err == ""


@pytest.mark.parametrize("verb", [verb.__name__ for verb in VERBS])
def test_every_verb_gives_what_went_wrong_as_json(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verb: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"run": ["none.yaml"], "rebuild": ["none"], "agent": ["none"]}
    wrong = [[verb, "--no-such-option", "--json"]]
    if verb not in ("doctor", "runs"):  # these two never fail
        wrong.append([verb, *named.get(verb, ["--run", "none"]), "--json"])
    for typed in wrong:
        code = main(typed)
        out, err = capsys.readouterr()
        error = json.loads(out)["error"]
        assert (code, error["exit_code"]) == (2, 2)
        assert error["kind"].endswith(("Error", "Option"))
        assert (err == f"error: {error['message']}\n" and "none" in err) or "--no-such" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "code"), ENDINGS)
def test_an_error_of_any_kind_is_an_object(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    fake.work = failing(error).work
    assert main([*MERGE, "--json", "-q"]) == code
    out, err = capsys.readouterr()
    wanted = {"exit_code": code, "kind": type(error).__name__, "message": str(error)}
    assert json.loads(out) == {"error": wanted}
    assert err == f"error: {error}\n"


def test_what_failed_in_part_is_one_document(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"run": "x-9x", "speedup": 9.0, "exit_code": 6, "error": "too much"}]
    fake.result = {"plans": rows}
    assert main(["search", "--run", "x", "--speedup", "9,10", "--json"]) == 6
    told = json.loads(capsys.readouterr().out)
    assert told["plans"] == rows and told["error"]["message"] == "x-9x: too much"
    fake.result = {"engines": [engine("merged", "fp32", "no TensorRT here")]}
    assert main(["build", "--run", "x", "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert told["engines"] and told["error"]["kind"] == "DeviceError"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
