"""What ``build``, ``package`` and ``rebuild`` show: engines, and the bundles that hold them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from trt_layermerge.cli.tables import Result, fields_view, table


def build_view(result: Result) -> RenderableType:
    """Returns a line for every engine, and why the others are missing; ``build.json`` goes in."""
    engines = result["engines"]
    made = [row for row in engines if row["plan"] is not None]
    parts: list[RenderableType] = []
    if made:
        head = ("engine", "MB", "MB as ONNX", "seconds", "warnings")
        parts.append(table("Engines", head, [_engine(row) for row in made]))
    parts += [Text(line) for line in dict.fromkeys(_where(row) for row in made)]
    parts += [Text(line) for line in _missing(engines)]
    if not engines:
        parts.append(Text("no engine was asked for; choose one: --backend tensorrt"))
    return Group(*parts)


def _engine(row: Result) -> tuple[object, ...]:
    sizes = (f"{row[key] / 1e6:.2f}" for key in ("plan_bytes", "onnx_bytes"))
    return (row["plan"].rpartition("/")[2], *sizes, f"{row['seconds']:.1f}", row["warnings"])


def _where(row: Result) -> str:
    folder = row["plan"].rpartition("/")[0]
    return f"by {row['library']} {row['library_version']}, in {folder} of the run"


def _missing(engines: list[Result]) -> Iterator[str]:
    """Yields a sentence for every reason that kept engines from being built."""
    reasons: dict[str, list[str]] = {}
    for row in engines:
        if row["plan"] is None:
            reasons.setdefault(row["error"], []).append(f"{row['network']} {row['precision']}")
    for reason, names in reasons.items():
        yield f"not built: {', '.join(names)}: {reason}"


def package_view(result: Result) -> RenderableType:
    """Returns a line for every bundle, and what checks it; ``package.json`` goes in."""
    bundles = result["bundles"]
    rows = [(b["target"], b["precision"], b["engine"] or "none") for b in bundles]
    checks = [_check(bundle) for bundle in bundles]
    return Group(table("Bundles", ("for", "precision", "engine"), rows), *checks)


def rebuild_view(result: Result) -> RenderableType:
    """Returns what a bundle holds now, and what checks it."""
    told = {key: value for key, value in result.items() if value is not None}
    return Group(fields_view(told), _check(result))


def _check(bundle: Result) -> Text:
    typed = shlex.join(["python3", f"{bundle['bundle']}/verify.py"])
    return Text(f"→ {typed}", overflow="fold")
