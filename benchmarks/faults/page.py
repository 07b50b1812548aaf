"""What the campaign found, as a page."""

from __future__ import annotations

from collections import Counter

from benchmarks.faults.campaign import BAD
from benchmarks.faults.memory import FLOOR_BYTES
from benchmarks.results import Page, measured_by
from trt_layermerge.core.jsonio import Json

OUTCOMES = ("same", "another value", "refused", *BAD)

SECTIONS: dict[str, tuple[int, str]] = {
    "kills": (
        200,
        "SIGKILL before or after a system call that changes a file, or at any moment, of a run of "
        "the tiny project at every stage. The same command then takes the run up again. *Same*: "
        "all files but those with times of their own are, byte by byte, those of an undisturbed "
        "run; no row stands twice, nothing is left behind, and at most one finished measurement "
        "was repeated.",
    ),
    "limits": (
        52,
        "From a stage on, the disk is full (but for up to eight pages), the folder is read-only, "
        "files may have a few kB, or memory ends within 48 MiB. *Refused*: the command said so; "
        "then it was taken up again as above. *Same*: the limit was not reached, or the system "
        "ended a process without memory.",
    ),
    "crowds": (
        26,
        "Two and four processes at once on one run: all but one are refused, and the result is "
        "that of one.",
    ),
    "candidates": (
        100,
        "A block or a whole network that fails, crashes, hangs, runs out of memory or is timed to "
        "0, −1, NaN or infinity, among sound ones: *refused* means that it cost its own entry, "
        "with its cause, and the others were timed.",
    ),
    "attacks": (
        50,
        "Engines, sidecars and bundles that are not what they stand for, or are no files.",
    ),
    "payloads": (
        80 * 22,
        "Pickles, YAML tags, archives, ONNX models with data elsewhere, PostScript, links, pipes "
        "and texts that a shell, Python or an import would run, each in the place of every file "
        "that is read. What is executed makes a file.",
    ),
    "readers": (10_000, "Damages of every file that has a reader."),
    "verbs": (
        1_400,
        "Damages of a finished run's files with a verb after each; *noted as right*: its own "
        "record says that they are as they were.",
    ),
}
"""Families with how many are wanted, and what is done."""

HEAD = """\
# Faults

{origin}

Every fault ends with the same result, with another value where no hash can tell, or with a clear \
refusal. What must not be: *raw*, an error that is no paragraph of ours; *other*, another result \
without a word; *hang*, more than ten seconds for a file, times the processes for each core where \
these are more; *memory*, more than twice what the sound file takes, or than {floor} MiB, the \
interpreter's own, where that is more (watched where a column tells growth); *executed*, code that \
came with a file. Seed {seed}; [how](../../benchmarks/faults/__main__.py).

| faults | tried | badly ended | at commit |
|---|---:|---:|---|
{summary}
{short}"""


def shortened(rows: list[Json]) -> list[Json]:
    """Returns how many trials of each kind came to what, and those that ended badly."""
    found: dict[tuple[str, str], Counter[str]] = {}
    grown: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row["family"], kind_of(row["family"], row["trial"])
        found.setdefault(key, Counter())[row["outcome"]] += 1
        if "grown" in row:
            grown[key] = max(grown.get(key, 0), row["grown"])
    counts: list[Json] = [
        {"family": key[0], "kind": key[1], "outcomes": dict(counter)}
        | ({"grown": grown[key]} if key in grown else {})
        for key, counter in found.items()
    ]
    bad = [row for row in rows if row["outcome"] in BAD]
    return counts + [{k: r[k] for k in ("family", "trial", "outcome", "said")} for r in bad]


def kind_of(family: str, trial: str) -> str:
    """Returns the line of the page that a trial counts in."""
    if family == "verbs":
        verb, _, rest = trial.partition(" over ")
        return f"{verb}{', noted as right' if 'noted' in rest else ''}"
    if family == "payloads":
        first = trial.split()[0]
        return first if first in ("pickle", "YAML", "field", "zip", "ONNX") else "other files"
    if family == "attacks":
        what = trial.partition(":")[0]
        return next(
            (k for k in ("manifest, signed", "manifest without", "the other's") if k in what), what
        )
    cut = {"kills": " of ", "limits": " from ", "candidates": ":"}.get(family)
    return trial.split(cut)[0] if cut else trial


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    counts = [row for row in rows if "kind" in row]
    bad = [row for row in rows if "trial" in row]
    lines, short, sections = [], [], []
    for family, (wanted, words) in SECTIONS.items():
        own = [row for row in counts if row["family"] == family]
        tried = sum(sum(row["outcomes"].values()) for row in own)
        at = f"`{header['commits'][family]}`" if own else ""
        lines.append(f"| {family} | {tried:,} | {sum(r['family'] == family for r in bad)} | {at} |")
        if tried < wanted:
            short.append(f"{family} ({tried:,} of {wanted:,})")
        if own:
            sections.append(_section(family, words, own))
    told = f"\nNot reached yet: {', '.join(short)}.\n" if short else ""
    head = HEAD.format(
        origin=measured_by("faults --record", header),
        seed=header["seed"],
        floor=2 * FLOOR_BYTES >> 20,
        summary="\n".join(lines),
        short=told,
    )
    faults = [f"- {r['outcome']}, {r['trial']}: {' '.join(r['said'].split())}" for r in bad[:100]]
    ended = ["## What ended badly\n", *faults] if faults else []
    return "\n".join([head, *sections, *ended]).rstrip() + "\n"


def _section(family: str, words: str, rows: list[Json]) -> str:
    names = [name for name in OUTCOMES if any(name in row["outcomes"] for row in rows)]
    measured = all("grown" in row for row in rows)
    heads = [*names, "grew by at most, MiB"] if measured else names
    lines = [f"## {family.capitalize()}\n\n{words}\n", f"| | {' | '.join(heads)} |"]
    lines.append(f"|---|{'---:|' * len(heads)}")
    for row in rows:
        figures = [str(row["outcomes"].get(name, 0)) for name in names]
        figures += [f"{row['grown'] / 2**20:.1f}"] if measured else []
        lines.append(f"| {row['kind']} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


PAGE = Page("faults", text)
