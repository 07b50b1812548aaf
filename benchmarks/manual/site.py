"""A hook of MkDocs: what the pages link to outside ``docs`` becomes part of the site.

So every file is written once, its links work in the repository, and they work in the site:
``README.md`` is the first page, the README of a folder is that folder's, and a recipe or a script
that a page names is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, relpath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
DOCS = "docs/"
LINK = re.compile(r"(?<=\]\()(?P<path>[^()\s#:]*)(?P<anchor>#[^()\s]*)?(?=\))")
CODE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)`*\s*$", re.MULTILINE | re.DOTALL)
IMAGES = (".png", ".svg", ".jpg")
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", "": "docker"}


def prose(text: str) -> str:
    """Returns a page without its blocks of code."""
    return CODE.sub("", text)


def linked(source: str, text: str) -> Iterator[str]:
    """Yields the files that a page links to, as paths in the repository.

    Args:
        source: Path of the page in the repository.
        text: What is on it.
    """
    for match in LINK.finditer(prose(text)):
        if match["path"]:
            yield resolved(source, match["path"])


def resolved(source: str, link: str) -> str:
    """Returns the path in the repository that a relative link of a page stands for."""
    return relpath((ROOT / dirname(source) / unquote(link)).resolve(), ROOT)


def place(path: str) -> str:
    """Returns where in the site's sources a file of the repository stands."""
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    if path.endswith("README.md"):
        return path.removesuffix("README.md") + "index.md"
    return path if path.endswith((".md", *IMAGES)) else f"{path}.md"


def outside(pages: list[str]) -> dict[str, str]:
    """Returns what the site needs from outside ``docs``: paths in the repository, by place.

    Args:
        pages: Paths of the pages to begin with; those that they lead to are followed.
    """
    found: dict[str, str] = {}
    seen = set(pages)
    while pages:
        page = pages.pop()
        if not page.startswith(DOCS):
            found[place(page)] = page
        if not page.endswith(".md"):
            continue
        for target in linked(page, (ROOT / page).read_text(encoding="utf-8")):
            if target not in seen and (ROOT / target).is_file():
                seen.add(target)
                pages.append(target)
    return found


def shown(path: str) -> str:
    """Returns a file that is no page as one: a title, and the text as it is."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n````{language}\n{text}\n````\n"


def relinked(source: str, text: str) -> str:
    """Returns a page whose links lead to where the site has the files."""

    def there(match: re.Match[str]) -> str:
        target = resolved(source, match["path"]) if match["path"] else source
        if not (ROOT / target).is_file():
            return match[0]  # MkDocs says that it is missing
        return relpath(place(target), dirname(place(source)) or ".") + (match["anchor"] or "")

    return LINK.sub(there, text)


def on_files(files: Files, config: Any) -> Files:
    """Adds the files from outside ``docs``; MkDocs calls it."""
    from mkdocs.structure.files import File, InclusionLevel

    begin = ["README.md", *(f"{DOCS}{file.src_uri}" for file in files.documentation_pages())]
    for uri, path in outside(begin).items():
        if uri.endswith(IMAGES):
            made = File.generated(config, uri, abs_src_path=str(ROOT / path))
        else:
            text = (ROOT / path).read_text("utf-8") if path.endswith(".md") else shown(path)
            made = File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        made.edit_uri = path
        files.append(made)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns a page with its links; MkDocs calls it."""
    file = page.file
    return relinked(file.edit_uri if file.generated_by else DOCS + file.src_uri, markdown)
