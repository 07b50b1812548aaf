"""What both studies understand on the command line, and how they end."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.studies.journal import Journal
from benchmarks.studies.settings import NETWORKS
from benchmarks.studies.workers import Clock, OutOfTimeError
from trt_layermerge.errors import LayerMergeError


def shared_parser(study: str, description: str | None, published: Path) -> argparse.ArgumentParser:
    """Returns the options that every study has.

    Args:
        study: Its module, such as ``glyphs``.
        description: What it does.
        published: Where its results go unless something else is typed.
    """
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.studies.{study}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = [network.name for network in NETWORKS]
    add = found.add_argument
    add("--work", type=Path, default=Path("runs/studies"), metavar="DIR")
    add("--data", type=Path, metavar="DIR", help="train.npz, val.npz, test.npz; shipped by default")
    add("--networks", nargs="+", choices=known, default=known)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    add("--workers", type=int, choices=(1, 2), default=1, help="processes")
    add("--budget-minutes", type=float, metavar="M", help="stop cleanly after so long")
    add("--publish", type=Path, default=published, metavar="FILE", help="where results go")
    return found


def conduct(options: argparse.Namespace, work: Callable[[Clock], Journal | None]) -> int:
    """Runs a study and publishes its journal, if it comes to one.

    Returns:
        0 when it is done, 1 on an error and 3 when time was over.
    """
    minutes = options.budget_minutes
    try:
        journal = work(Clock(time.time() + 60 * minutes if minutes is not None else None))
    except OutOfTimeError:
        print("the time is over; the same command continues")
        return 3
    except LayerMergeError as error:
        print(error)
        return 1
    if journal is not None:
        journal.copy_to(options.publish)
        print(f"{options.publish} written; now: python -m benchmarks.studies.report")
    return 0
