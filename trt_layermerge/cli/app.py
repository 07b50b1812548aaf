"""Every verb, in the order in which a run uses them."""

from __future__ import annotations

from typing import Annotated

import typer

from trt_layermerge import __version__
from trt_layermerge.cli.agent import agent
from trt_layermerge.cli.bench import bench
from trt_layermerge.cli.build import build
from trt_layermerge.cli.calibrate import calibrate
from trt_layermerge.cli.doctor import doctor
from trt_layermerge.cli.export import export
from trt_layermerge.cli.finetune import finetune
from trt_layermerge.cli.importance import importance
from trt_layermerge.cli.inspect import inspect
from trt_layermerge.cli.latency import latency
from trt_layermerge.cli.merge import merge
from trt_layermerge.cli.package import package
from trt_layermerge.cli.rebuild import rebuild
from trt_layermerge.cli.report import report
from trt_layermerge.cli.run import run
from trt_layermerge.cli.search import search
from trt_layermerge.cli.verb import add_verb
from trt_layermerge.cli.verify import verify

VERBS = (
    doctor,
    run,
    inspect,
    latency,
    importance,
    search,
    finetune,
    merge,
    export,
    calibrate,
    build,
    bench,
    verify,
    report,
    package,
    rebuild,
    agent,
)

EXIT_CODES = (
    "Exit codes: 0 done, 2 usage, 3 unsupported model, 4 device or backend, 5 accuracy gate, "
    "6 latency gate, 7 corrupt or untrusted input, 130 interrupted."
)

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Makes trained CNNs shallower by measured latency, and builds TensorRT engines of them."""


for _verb in VERBS:
    add_verb(app, _verb)
