"""A hook of mkdocs: what documents link to outside of docs/ becomes a part of the site.

A link such as ../jolkernels/loss.py leads to a file of the repository where its host shows the
document. In the site the file is a page, made when the site is built.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
COPIED = {".csv", ".png", ".svg"}
"""Suffixes of files that are no pages."""


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the linked files, and those that these link to."""
    pages = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    for page in pages:  # grows
        for path in linked(page):
            uri = place(path)
            if path.exists() and files.get_file_from_path(uri) is None:
                files.append(made(path, uri, config))
                if path.suffix == ".md":
                    pages.append(path)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The document with links to where the files are in the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri)
    origin = ROOT / "docs" / uri
    if uri.startswith("repository/"):
        origin = ROOT / uri.removeprefix("repository/")
        if origin.suffix != ".md" or not origin.exists():
            return markdown  # text of a file, whose links are its own

    def moved(link: re.Match[str]) -> str:
        path = target(origin, link[1])
        return link[1] if path is None else posixpath.relpath(place(path), folder)

    return LINK.sub(moved, markdown)


def linked(page: Path) -> list[Path]:
    """The files of the repository that a document links to."""
    found = [target(page, link) for link in LINK.findall(page.read_text())]
    return [path for path in found if path is not None]


def target(page: Path, link: str) -> Path | None:
    """The file that a link of a document leads to; None for an address."""
    if ":" in link:
        return None
    path = (page.parent / link).resolve()
    return path if path.is_relative_to(ROOT) else None


def place(path: Path) -> str:
    """Where a file of the repository is in the site's sources."""
    uri = path.relative_to(ROOT).as_posix()
    if uri.startswith("docs/"):
        return uri.removeprefix("docs/")
    return f"repository/{uri}" + ("" if path.suffix in COPIED | {".md"} else ".md")


def made(path: Path, uri: str, config: MkDocsConfig) -> File:
    """A file of the repository as one of the site."""
    if path.suffix in COPIED:
        return File.generated(config, uri, abs_src_path=str(path))
    if path.suffix == ".md":
        return File.generated(config, uri, content=path.read_text())
    if path.is_dir():
        text = "\n".join(
            sorted(child.name for child in path.iterdir() if child.name[0] not in "._")
        )
    else:
        text = path.read_text()
    name = path.relative_to(ROOT).as_posix()
    block = f"~~~~ {path.suffix.removeprefix('.') or 'text'}\n{text}\n~~~~"
    head = f"---\ntitle: {name}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n# {name}\n\n"
    return File.generated(config, uri, content=head + block)
