"""Every verb, in the order in which a run uses them."""

from __future__ import annotations

from typing import Annotated

import typer

from trt_layermerge import __version__
from trt_layermerge.cli.latency import latency
from trt_layermerge.cli.run import run
from trt_layermerge.cli.stages import (
    bench,
    build,
    calibrate,
    export,
    finetune,
    importance,
    inspect,
    merge,
    package,
    report,
    search,
    verify,
)
from trt_layermerge.cli.tools import agent, doctor, rebuild
from trt_layermerge.cli.verb import add_verb

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
