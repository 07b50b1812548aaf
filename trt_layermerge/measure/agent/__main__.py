"""The agent's own command line, in the zipapp and as ``python -m trt_layermerge.measure.agent``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from trt_layermerge import __version__
from trt_layermerge.errors import DeviceError, LayerMergeError

if TYPE_CHECKING:
    from trt_layermerge.measure.agent.run import Progress, Summary

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (default: of this process) and returns its exit code."""
    options = _parser().parse_args(arguments)
    if options.worker is None:  # a worker is ended by its parent
        _end_in_order()
    try:
        return _work(options)
    except LayerMergeError as error:
        return _failed(error.exit_code, str(error))
    except KeyboardInterrupt:
        return _failed(INTERRUPTED, "interrupted; type the same command to continue")
    except BrokenPipeError:  # whoever listened is gone, as when a connection breaks
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        return INTERRUPTED
    except MemoryError:
        return _failed(DeviceError.exit_code, "out of memory; close other programs and try again")


def _end_in_order() -> None:
    """Has ``kill``, a reboot and a terminal that closes end the agent as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, signal.default_int_handler)


def _failed(code: int, paragraph: str) -> int:
    print(f"error: {paragraph}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trt-layermerge-agent",
        description="Builds and times a folder of jobs on this device. Stop it whenever you like; "
        "the same command goes on.",
        epilog="Exit codes: 0 done, 2 usage, 4 device, 7 damaged input, 130 interrupted.",
    )
    parser.add_argument("folder", metavar="JOBS_DIR", type=Path, help="folder with manifest.json")
    parser.add_argument("--backend", metavar="NAME", help="in place of the one in the manifest")
    parser.add_argument("--list", action="store_true", help="list the jobs and measure nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--worker", metavar="PID", type=int, help=argparse.SUPPRESS)
    return parser


def _work(options: argparse.Namespace) -> int:
    if find_spec("numpy") is None:
        raise DeviceError("the agent needs numpy; type: sudo apt install python3-numpy")
    if options.worker is not None:
        from trt_layermerge.measure.agent.worker import serve

        return serve(options.folder, options.backend, options.worker)
    from trt_layermerge.measure.agent import run

    if options.list:
        jobs = run.list_jobs(options.folder)
        _print(options.json, {"jobs": jobs}, "\n".join(_line(job) for job in jobs))
        return 0
    summary = run.run_jobs(options.folder, backend=options.backend, on_progress=show)
    _print(options.json, summary.to_json(), ended(summary))
    return 0


def _print(as_json: bool, result: dict[str, Any], words: str) -> None:
    print(json.dumps(result, indent=1) if as_json else words)


def _line(job: dict[str, Any]) -> str:
    took = "" if job["ms"] is None else f"{job['ms']:.4f} ms"
    return f"{job['state']:8} {took:>12}  {job['label']}"


def show(progress: Progress) -> None:
    """Prints one line of progress to standard error."""
    left = "" if progress.seconds_left is None else f", {_duration(progress.seconds_left)} left"
    print(f"{progress.done}/{progress.total} {progress.label}{left}", file=sys.stderr, flush=True)
    if progress.note:
        print(f"note: {progress.note}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def ended(summary: Summary) -> str:
    """Returns how a run ended, and what to type next."""
    failed = len(summary.failed)
    lines = [f"{summary.total - failed} of {summary.total} jobs measured: {summary.results}"]
    lines += [f"failed: {label}" for label in summary.failed[:5]]
    lines += [f"and {failed - 5} more failed; their errors are in the file"] if failed > 5 else []
    lines += [f"note: {note}" for note in summary.notes]
    lines.append("copy the file to the host and type there:")
    lines.append("  trt-layermerge latency --run NAME --import FILE")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
