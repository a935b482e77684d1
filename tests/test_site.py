"""The documents as a site: mkdocs builds it without a warning, and nothing in it leads nowhere."""

import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import jolkernels
from jolkernels import spec

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert built.returncode == 0, built.stderr
    return folder


class Parts(HTMLParser):
    """The ids of a page, and what it links to or loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given[name] or "" for name in ("id", "name") if name in given}
        canonical = tag == "link" and given.get("rel") in ("canonical", "next", "prev")
        for name in ("href", "src"):
            if given.get(name) and not canonical:
                self.links.append(given[name] or "")


def test_every_link_leads_somewhere(site: Path) -> None:
    """To a file of the site, and to a place in it that there is."""
    pages = {page: Parts(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 25
    lost = []
    for page, parts in pages.items():
        for link in parts.links:
            url = urlsplit(link)
            if url.scheme in ("http", "https", "data"):
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            target = target / "index.html" if target.is_dir() else target
            known = target in pages and (
                not url.fragment or unquote(url.fragment) in pages[target].ids
            )
            if not known and (target in pages or not target.is_file()):
                lost.append(f"{page.relative_to(site)}: {link}")
    assert not lost


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert 'src="http' not in text and 'rel="stylesheet" href="http' not in text, page


def test_lists_and_tables_are_read_as_such(site: Path) -> None:
    """Which mkdocs, unlike others, does only after an empty line."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<(pre|script|style)\b.*?</\1>", "", page.read_text(), flags=re.S)
        left = re.findall(r"^(?:- |\| |\d\. |```).*|.*<p>(?:- |\| |```).*", text, re.M)
        assert not left, page


def test_every_document_is_a_page(site: Path) -> None:
    for document in (ROOT / "docs").rglob("*.md"):
        path = document.relative_to(ROOT / "docs").with_suffix("")
        page = site / path / "index.html" if path.name != "index" else site / "index.html"
        assert page.is_file(), path


def test_the_public_names_are_documented(site: Path) -> None:
    inventory = (site / "objects.inv").read_bytes()
    names = zlib.decompress(inventory.split(b"\n", 4)[4]).decode()
    known = {line.split()[0] for line in names.splitlines()}
    wanted = {f"jolkernels.loss.{name}" for name in jolkernels.__all__}
    choices = {choice.__name__ for kind in spec.CHOICES.values() for choice in kind.values()}
    wanted |= {f"jolkernels.spec.{name}" for name in choices | {"register"}}
    wanted |= {"jolkernels.loss.JointOptimizationLoss.dense"}
    for framework in ("ultralytics", "transformers"):
        wanted.add(f"jolkernels.integrations.{framework}.use_joint_loss")
    assert not wanted - known


def test_a_call_is_documented_with_its_arguments(site: Path) -> None:
    """Not as *args, which the source has."""
    text = (site / "api" / "loss" / "index.html").read_text()
    assert "classification_normalizer" in text and "*args" not in text


def test_a_file_of_the_repository_is_a_page(site: Path) -> None:
    """Where a document links to one, and the link leads there."""
    text = (site / "repository" / "examples" / "own_loop.py" / "index.html").read_text()
    assert "make_batch" in text
    assert "../repository/examples/own_loop.py/" in Parts(site / "recipes" / "index.html").links
