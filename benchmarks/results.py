"""Figures of benchmarks in ``docs/results/data``, and pages that are made of them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies.journal import machine, session
from benchmarks.studies.settings import ROOT
from trt_layermerge.core.jsonio import Json, read_lines, write_lines, write_text

RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Page:
    """A page of results.

    Attributes:
        name: File of the page, without ``.md``, and of its figures, without ``.jsonl``.
        text: Header and rows to Markdown; a pure function.
        results: Folder of the pages.
        page: The page itself, where it does not stand there.
    """

    name: str
    text: Callable[[Json, list[Json]], str]
    results: Path = RESULTS
    page: Path | None = None

    @property
    def path(self) -> Path:
        """The page."""
        return self.page or self.results / f"{self.name}.md"

    @property
    def data(self) -> Path:
        """Its figures."""
        return self.results / "data" / f"{self.name}.jsonl"

    def read(self) -> str:
        """Returns the text that the recorded figures give."""
        return self.text(*read_lines(self.data, self.name))

    def write(self) -> None:
        """Writes the page from the recorded figures."""
        write_text(self.path, self.read())

    def record(self, settings: Json, rows: Sequence[Json]) -> None:
        """Writes figures, where and by what they were measured, and the page.

        What ``settings`` say of that stands: figures may be older than the page.
        """
        write_lines(self.data, self.name, {**machine(), **session(), **settings}, rows)
        self.write()


def measured_by(module: str, header: Json) -> str:
    """Returns a sentence about command, machine, versions and commit of recorded figures.

    Figures that were measured before such things were recorded have a ``note`` instead.
    """
    if "note" in header:
        return str(header["note"])
    found = header["versions"]
    libraries = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "onnxruntime"))
    return (
        f"Made by `python -m benchmarks.{module}` at `{header['commit']}` on {header['cpu']} with "
        f"{header['cores']} cores; {libraries}; load average at the end {header['load']:.2f}."
    )
