"""``doctor``: what this machine can do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from trt_layermerge.cli.console import print_result
from trt_layermerge.cli.options import OutputOptions
from trt_layermerge.cli.verb import option
from trt_layermerge.cli.views import doctor_view


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(OutputOptions):
    """Options of ``doctor``."""

    runs_dir: Path = option("Folder whose disk is looked at.", default=Path("runs"))


def doctor(options: DoctorOptions) -> None:
    """Shows the machine: what works, what is missing and what to type."""
    from trt_layermerge.doctor import examine
    from trt_layermerge.doctor.host import Host

    findings = [asdict(finding) for finding in examine(Host.local(options.runs_dir))]
    result = {"findings": findings}
    print_result(result, None if options.as_json else doctor_view(result))
