"""Versioned files: written whole or not at all, read with a clear refusal when damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict

from trt_layermerge.core.scratch import file_prefix
from trt_layermerge.errors import CorruptInputError, DeviceError, UsageError, foreign

Json = Dict[str, Any]
MAX_FILE_BYTES = 256 * 2**20
SMALL_BYTES = 2**20
REDO = "delete the file and run the same command again to redo it"


def schema_name(kind: str) -> str:
    """Returns the schema field of a file, such as ``trt-layermerge/plan@1``."""
    return f"trt-layermerge/{kind}@1"


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file atomically: readers see the old content or the new, never half of it.

    Raises:
        DeviceError: If the folder cannot be written or the disk is full; the old file stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=file_prefix(path.name))
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise DeviceError(
            f"cannot write {path}: {error.strerror or error}; "
            "choose a writable folder with free space (--runs-dir DIR)"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically. Raises ``DeviceError`` as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, kind: str, body: Mapping[str, Any]) -> None:
    """Writes one JSON object with its schema first.

    Args:
        path: The file; replaced atomically.
        kind: Its schema, without version.
        body: JSON-ready.

    Raises:
        DeviceError: If it cannot be written; the old file stays.
    """
    write_text(path, json.dumps({"schema": schema_name(kind), **body}, indent=1) + "\n")


def read_json(path: Path, kind: str, remedy: str = REDO) -> Json:
    """Returns the object of a file that ``write_json`` wrote.

    Args:
        path: The file.
        kind: Its schema, without version.
        remedy: What to do where it is damaged.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged, too large or of another schema.
    """
    return _checked_object(path, _read_text(path, remedy), kind, remedy)


def write_lines(path: Path, kind: str, header: Mapping[str, Any], rows: Iterable[Json]) -> None:
    """Writes a JSON Lines table: a header line with the schema, then one row a line.

    Args:
        path: The file; replaced atomically.
        kind: Its schema, without version.
        header: What else the first line says, JSON-ready.
        rows: JSON-ready.

    Raises:
        DeviceError: If it cannot be written; the old file stays.
    """
    lines = [json.dumps({"schema": schema_name(kind), **header})]
    lines += [json.dumps(row) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def read_lines(path: Path, kind: str) -> tuple[Json, list[Json]]:
    """Returns header and rows of a JSON Lines table.

    A last line without a line end is the trace of an interrupted write and is dropped. What
    ``sealed`` put into rows is checked and taken out.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If any other line is damaged, or the schema is another one.
    """
    complete, _, _ = _read_text(path).rpartition("\n")
    lines = complete.split("\n")
    header = _checked_object(path, lines[0], kind)
    rows = [_unsealed(path, line, number) for number, line in enumerate(lines[1:], 2) if line]
    return header, rows


SEAL = "sha256"


def sealed(row: Json) -> Json:
    """Returns a row with a hash of itself, so that ``read_lines`` notices any change of it."""
    return {**row, SEAL: sha256_json(row)[:16]}


def _unsealed(path: Path, line: str, number: int) -> Json:
    row = _parse(path, line, number)
    seal = row.pop(SEAL, None)
    if seal is not None and sealed(row)[SEAL] != seal:
        remedy = f"delete that line, or {REDO}"
        raise _corrupt(path, f"line {number} is not as it was written", remedy)
    return row


def append_line(path: Path, row: Json) -> None:
    """Appends one durable row: it is on the disk when this returns. Raises ``DeviceError``.

    A half-written last line left by a killed process is cut off first.
    """
    try:
        with path.open("r+b") as file:
            _cut_partial_line(file)
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DeviceError(
            f"cannot append to {path}: {error.strerror or error}; free space or choose another "
            "folder (--runs-dir DIR), then type the same command to continue"
        ) from error


def _cut_partial_line(file: Any) -> None:
    """Leaves the file position at the end of the last complete line."""
    size = file.seek(0, os.SEEK_END)
    position = size
    while position:
        step = min(position, 65536)
        file.seek(position - step)
        found = file.read(step).rfind(b"\n")
        if found >= 0:
            position = position - step + found + 1
            break
        position -= step
    file.truncate(position)
    file.seek(position)


@contextmanager
def damage(path: Path, remedy: str = REDO) -> Iterator[None]:
    """Turns what reading malformed fields raises into one clear refusal, and says what to do.

    Raises:
        CorruptInputError: In place of whatever a missing or malformed field causes.
    """
    with foreign(lambda why: _corrupt(path, f"a field is missing or malformed ({why})", remedy)):
        yield


def regular(path: Path) -> Path:
    """Returns the path of a file that ends: nobody may write to a pipe, and a device goes on.

    Raises:
        OSError: If it is a pipe, a device or a socket; what is missing shows when it is opened.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return path


def read_small(path: Path, most: int = SMALL_BYTES) -> bytes:
    """Returns the content of a file that people write, such as a recipe.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        OSError: If it is missing, no file, or larger.
    """
    size = regular(path).stat().st_size
    if size > most:
        raise OSError(
            errno.EFBIG, f"it has {size:,} bytes, and {most:,} at most are read", str(path)
        )
    return path.read_bytes()


def read_whole(path: Path) -> bytes:
    """Returns the content of a file of any size. Raises ``OSError``, also where memory is less."""
    try:
        return regular(path).read_bytes()
    except MemoryError as error:
        raise OSError(errno.ENOMEM, "it is larger than the memory", str(path)) from error


def sha256_bytes(data: bytes) -> str:
    """Returns the SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex. Raises ``UsageError`` if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with regular(path).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}; check its name"
        ) from error
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the SHA-256 of a JSON value in canonical form."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def _read_text(path: Path, remedy: str = REDO) -> str:
    try:
        if regular(path).stat().st_size > MAX_FILE_BYTES:
            raise CorruptInputError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; not read")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}; run the stage that writes it first") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _corrupt(path, "it is not UTF-8 text", remedy) from error


def _checked_object(path: Path, text: str, kind: str, remedy: str = REDO) -> Json:
    body = _parse(path, text, 1, remedy)
    found, wanted = body.get("schema"), schema_name(kind)
    if found != wanted:
        raise _corrupt(path, f"schema is {found!r}, not {wanted!r}", remedy)
    return body


def _parse(path: Path, text: str, line: int, remedy: str = REDO) -> Json:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"line {line} is not valid JSON", remedy) from error
    if not isinstance(body, dict):
        raise _corrupt(path, f"line {line} is not a JSON object", remedy)
    return body


def _corrupt(path: Path, why: str, remedy: str) -> CorruptInputError:
    return CorruptInputError(f"{path} is damaged: {why}; {remedy}")
