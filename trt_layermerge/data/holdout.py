"""Two disjoint hold-outs of a folder of training images, as lists: the paper's split, reproducibly.

``python -m trt_layermerge.data.holdout DIR --images 50000 --out calib/lists/imagenet`` writes
``imagenet-train-holdout.txt`` and ``imagenet-val-holdout.txt``. Both are stratified: every class
has its share. Which images are drawn depends on nothing but the seed, their paths and contents.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.data.images import images_below
from trt_layermerge.data.lists import ImageList, Listed, write_list
from trt_layermerge.errors import CorruptInputError, LayerMergeError, UsageError

PARTS = ("train-holdout", "val-holdout")


def hold_out(folder: Path, images: int, seed: int) -> tuple[ImageList, ImageList]:
    """Returns two disjoint lists of ``images`` each, drawn from a folder of class folders.

    The images of a class are sorted by the hash of seed and path. An image whose content was drawn
    before, under another name, is passed over.

    Args:
        folder: One sub-folder for each class.
        images: Number in each list.
        seed: Decides which.

    Raises:
        UsageError: If there are too few images in all, or in one class.
        CorruptInputError: If a file cannot be read.
    """
    by_class = classes_of(folder)
    shares = quotas({name: len(files) for name, files in by_class.items()}, images)
    drawn: tuple[list[Listed], list[Listed]] = ([], [])
    seen: set[str] = set()
    for label, (name, files) in enumerate(by_class.items()):
        queue = _fresh(folder, sorted(files, key=lambda path: _key(seed, path)), label, seen)
        parts = [list(islice(queue, shares[name])) for _ in PARTS]
        found = sum(map(len, parts))
        if found < 2 * shares[name]:
            raise UsageError(
                f"class {name} has {found} different images, and two hold-outs need "
                f"{2 * shares[name]} of it; ask for fewer (--images)"
            )
        for whole, part in zip(drawn, parts, strict=True):
            whole += part
    about = {"seed": seed, "folder": folder.resolve().name, "of": sum(map(len, by_class.values()))}
    first, second = (
        ImageList(
            tuple(by_class), tuple(sorted(part, key=lambda i: i.path)), {"part": name, **about}
        )
        for name, part in zip(PARTS, drawn, strict=True)
    )
    return first, second


def classes_of(folder: Path) -> dict[str, list[str]]:
    """Returns paths below a folder by class, classes and paths in alphabetical order.

    Raises:
        UsageError: If there is no such folder, or a class is empty.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    found = {
        name: [f.relative_to(folder).as_posix() for f in images_below(folder / name)]
        for name in names
    }
    empty = [name for name, files in found.items() if not files]
    if not found or empty:
        raise UsageError(
            f"{folder} has no images in {', '.join(empty[:5]) or 'class folders'}; every class "
            "needs a folder with some"
        )
    return found


def quotas(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Returns how many of each class, proportional to its size, largest remainders rounded up.

    Raises:
        UsageError: If ``total`` is not positive, or twice as many are not there.
    """
    available = sum(sizes.values())
    if not 0 < 2 * total <= available:
        raise UsageError(
            f"two hold-outs of {total} images cannot be drawn from {available}; choose --images "
            f"from 1 to {available // 2}"
        )
    shares = {name: total * size // available for name, size in sizes.items()}
    order = sorted(sizes, key=lambda name: (-(total * sizes[name] % available), name))
    for name in order[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def _key(seed: int, path: str) -> str:
    return hashlib.sha256(f"{seed}:{path}".encode()).hexdigest()


def _fresh(folder: Path, paths: Sequence[str], label: int, seen: set[str]) -> Iterator[Listed]:
    """Yields images whose content was not drawn yet."""
    for path in paths:
        try:
            content = (folder / path).read_bytes()
        except OSError as error:
            raise CorruptInputError(f"cannot read {folder / path}: {error}") from error
        digest = sha256_bytes(content)
        if digest not in seen:
            seen.add(digest)
            yield Listed(path, label, len(content), digest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes both lists; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trt_layermerge.data.holdout", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="training images, a folder for each class")
    parser.add_argument("--images", type=int, default=50_000, help="images of each hold-out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="path that both names begin with")
    given = parser.parse_args(arguments)
    try:
        for name, listed in zip(
            PARTS, hold_out(given.folder, given.images, given.seed), strict=True
        ):
            path = given.out.with_name(f"{given.out.name}-{name}.txt")
            write_list(path, listed)
            print(f"{path}: {len(listed.images)} images of {len(listed.classes)} classes")
    except LayerMergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
