"""Every verb, in the order in which a run uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

from trt_layermerge import __version__
from trt_layermerge.cli.latency import latency
from trt_layermerge.cli.options import SharedOptions
from trt_layermerge.cli.run import run
from trt_layermerge.cli.runs import runs, status
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
from trt_layermerge.cli.verb import SETTINGS, add_verb

VERBS = (
    doctor,
    run,
    runs,
    status,
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

USES: Mapping[str, tuple[str, ...]] = {
    "inspect": ("model.", "measure.batch"),
    "latency": ("model.", "measure.", "seed"),
    "importance": ("data.train", "seed", "device"),
    "search": ("data.train", "data.val", "seed", "device"),
    "finetune": ("data.train", "data.val", "seed", "device"),
    "merge": (),
    "export": ("data.val", "measure.batch"),
    "calibrate": ("data.train", "data.val", "seed", "device"),
    "build": ("measure.batch",),
    "bench": ("measure.",),
    "verify": ("data.test",),
    "report": (),
    "package": (),
}
"""What a stage uses of the keys that shared options set. Its help lists these options. All others
are taken too: any verb may begin a run, and what a run is told it remembers."""


def unused(verb: Callable[[Any], None]) -> frozenset[str]:
    """Returns the fields of a verb's options that stand for keys it does not use."""
    own = fields(get_type_hints(verb)["options"])
    if verb.__name__ not in USES:
        return frozenset()
    shared = [each for each in fields(SharedOptions) if any(each is one for one in own)]
    keys = {each.name: each.metadata.get("key") for each in shared}
    return frozenset(
        name
        for name, key in keys.items()
        if key not in (None, SETTINGS) and not key.startswith(USES[verb.__name__])
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
    add_verb(app, _verb, unused(_verb))
