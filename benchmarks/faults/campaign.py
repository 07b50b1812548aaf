"""The campaign: thousands of damaged files, each read by whatever reads it.

Every damage must come to the same result or to a clear refusal. What does not is one of

========  ==========================================================================================
raw       an error that is no paragraph of ours, or one that says ``This is a bug``
other     another result, from a file that a hash would have told, or by a verb that ended with 0
hang      more than ten seconds of a core's time: as much longer as others want it too
memory    more than twice what the sound file takes, or twice ``FLOOR_BYTES`` if that is more
executed  code that came with the file
========  ==========================================================================================
"""

from __future__ import annotations

import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.faults.doors import Door, doors
from benchmarks.faults.memory import FLOOR_BYTES, growth, growth_of
from benchmarks.faults.mutations import mutated
from benchmarks.faults.verbs import READS, SAME, again, command, content, copied, note
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import LayerMergeError, words_of

PATIENCE_S = 10
BAD = ("raw", "other", "hang", "memory", "executed")

Damage = Callable[[Path, bytes, Random], str]
"""Damages a file, given its content; returns what was done to it."""


class Late(BaseException):
    """Something hangs. No ``Exception``: nobody may take it for damage."""


@dataclass(frozen=True)
class Trial:
    """One damage.

    Attributes:
        name: Which file, and what read it.
        number: Which of the damages of that file.
        work: Does it; returns the outcome and what was said.
        patience_s: How long it may take; None for ``PATIENCE_S``.
        sound_bytes: By how much the process grows with the sound file; None where the work is in
            other processes.
    """

    name: str
    number: int
    work: Callable[[Random], tuple[str, str]]
    patience_s: int | None = None
    sound_bytes: int | None = None

    def row(self, seed: int) -> Json:
        """Does it, and returns a row for the journal."""
        started = time.monotonic()
        rng = Random(f"{seed} {self.name} {self.number}")
        patience_s = self.patience_s or PATIENCE_S
        grown = growth()
        try:
            with _patience(patience_s):
                outcome, said = self.work(rng)
        except Late:
            outcome, said = "hang", f"longer than {patience_s} s"
        row: Json = {"trial": self.name, "number": self.number, "outcome": outcome}
        if self.sound_bytes is not None:
            row["grown"], most = grown(), 2 * max(self.sound_bytes, FLOOR_BYTES)
            if row["grown"] > most and outcome not in BAD:
                row["outcome"], said = "memory", f"{row['grown']:,} of {most:,} bytes: {said}"
        took = round(time.monotonic() - started, 2)
        return {**row, "said": said[:300], "seconds": took}


def reader_trials(work: Path, each: int) -> Iterator[Trial]:
    """Yields damages of every reader's file, in the process itself.

    Args:
        work: Folder of the sound files.
        each: How many for each reader.
    """
    for door in doors(work):
        sound, data = value_of(door), door.path.read_bytes()
        most = growth_of(partial(value_of, door))
        for number in range(each):
            damaged = reading(door, data, sound, _mutate)
            yield Trial(f"reader of {door.name}", number, damaged, sound_bytes=most)


def verb_trials(work: Path, each: int) -> Iterator[Trial]:
    """Yields damages of a finished run's files, each with a verb after it.

    Once more, the run's own record says that they are as they were written: so an attacker leaves
    them, or another version of the program. No hash can tell then, but nothing may be raw.

    Args:
        work: Folder with the finished run.
        each: How many for each file and verb.
    """
    doors(work)  # makes the run
    finished = work / "runs" / "tiny"
    sound, copies = content(finished), work / "copies"
    most = {
        verb: growth_of(partial(lambda verb: again(verb, copied(finished, copies)), verb))
        for verb in dict.fromkeys(verb for _, verb in READS)
    }
    for sealed, words in ((False, ""), (True, ", noted as right")):
        for file, verb in READS:
            for number in range(each):
                trial = _typing(finished, copies, file, verb, sound, sealed)
                name = f"{verb} over {file}{words}"
                yield Trial(name, number, trial, sound_bytes=most[verb])


def reading(
    door: Door, data: bytes, sound: str, damage: Damage, canary: Path | None = None
) -> Callable[[Random], tuple[str, str]]:
    """Returns what damages a door's file, reads it, and puts it back.

    Args:
        door: The reader.
        data: Content of its file.
        sound: What that comes to.
        damage: Damages the file.
        canary: File that the damage makes where it is executed.
    """

    def work(rng: Random) -> tuple[str, str]:
        try:
            outcome, said = _outcome(door, data, sound, damage, rng)
        finally:
            _put_back(door.path, data)
        if canary is not None and canary.exists():
            canary.unlink()
            return "executed", said
        return outcome, said

    return work


def _outcome(door: Door, data: bytes, sound: str, damage: Damage, rng: Random) -> tuple[str, str]:
    how = "damaged"
    try:
        how = damage(door.path, data, rng)
        found = value_of(door)
    except LayerMergeError as error:
        unbounded = "MemoryError" in str(error)  # nothing of this size was there to be read
        return "raw" if unbounded else "refused", f"{how}: {error}"
    except Late:
        raise
    except BaseException as error:
        return "raw", f"{how}: {words_of(error)}"
    if found == sound:
        return "same", how
    return ("other" if door.sealed else "another value"), how


def _put_back(path: Path, data: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(data)


def _mutate(path: Path, data: bytes, rng: Random) -> str:
    how, damaged = mutated(data, rng)
    path.write_bytes(damaged)
    return how


def _typing(
    finished: Path, copies: Path, file: str, verb: str, sound: dict[str, bytes], sealed: bool
) -> Callable[[Random], tuple[str, str]]:
    def work(rng: Random) -> tuple[str, str]:
        run = copied(finished, copies)
        how, damaged = mutated((run / file).read_bytes(), rng)
        (run / file).write_bytes(damaged)
        if sealed:
            note(run, file)
        code, said = command(verb, copies)
        if "This is a bug" in said or "Traceback" in said or code == 1:
            return "raw", f"{how}: {said}"
        if code != 0:
            return "refused", f"{how}: {said}"
        if sealed:
            return "another value", how
        # A file that the verb neither reads nor writes is left as it is; what it writes is not.
        judged = tuple(name for name in SAME if name != file or _written(verb, file))
        found = content(run, judged)
        other = [name for name in judged if found[name] != sound[name]]
        return ("other", f"{how}: {', '.join(other)}") if other else ("same", how)

    return work


def _written(verb: str, file: str) -> bool:
    return file.partition(".")[0] == verb or (verb, file) == ("report", "summary.json")


def value_of(door: Door) -> str:
    """Returns what a door's file comes to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(door.read(door.path))


@contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """Raises ``Late`` where something takes too long."""

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    wanted = os.getloadavg()[0] / (os.cpu_count() or 1)
    signal.alarm(math.ceil(seconds * max(1.0, wanted)))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
