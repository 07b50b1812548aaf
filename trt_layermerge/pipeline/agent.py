"""The measuring agent on this machine, reporting as every stage does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trt_layermerge.measure.agent.run import Progress, run_jobs
from trt_layermerge.pipeline.options import Reporter


def work_through(folder: Path, backend: str | None, reporter: Reporter) -> dict[str, Any]:
    """Measures what a folder of jobs still lacks; returns how that ended.

    Args:
        folder: What ``latency --export-jobs`` wrote.
        backend: Name of the backend, in place of the one that the folder names.
        reporter: Told of every measurement.

    Raises:
        UsageError: If it is no folder of jobs, or its results are another device's.
        CorruptInputError: If something in it is damaged.
        DeviceError: If the backend cannot be used, or the folder cannot be written.
    """

    def on_progress(progress: Progress) -> None:
        reporter.progress("measuring", progress.done, progress.total)
        if progress.note:
            reporter.note(progress.note)

    return run_jobs(folder, backend=backend, on_progress=on_progress).to_json()
