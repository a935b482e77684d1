"""The documents: links and paths exist, commands parse, Python runs."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(file.relative_to(ROOT)) for file in DOCUMENTS]
PATH = re.compile(r"`((?:jolkernels|detectors|bench|tests|docs|examples)/[\w./-]*)`")


def code_lines(text: str) -> list[str]:
    """Lines of code blocks, fenced or indented, continued lines joined, prompts removed."""
    text = text.replace("\\\n", " ")
    fenced = "".join(re.findall(r"```\w*\n(.*?)```", text, re.S))
    indented = re.findall(r"^    (.*)$", text, re.M)
    return [line.strip().removeprefix("$ ") for line in [*fenced.splitlines(), *indented]]


@pytest.mark.parametrize("name", NAMES)
def test_links_and_paths_exist(name: str) -> None:
    file = ROOT / name
    text = file.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in links if link and "://" not in link]
    missing = [link for link in local if not (file.parent / link).exists()]
    missing += [
        path for path in PATH.findall(text) if "NAME" not in path and not (ROOT / path).exists()
    ]
    assert not missing


def test_the_readme_is_short_and_its_python_runs() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(block, names)
        assert names["logits"].grad.abs().sum() > 0 and names["loss"].num_positives > 0


@pytest.mark.parametrize("name", NAMES)
def test_options_of_jol_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option that a printed command uses is in that command's help."""
    from detectors.cli import main

    commands = [line for line in code_lines((ROOT / name).read_text()) if line.startswith("jol ")]
    for line in commands:
        words = shlex.split(line, comments=True)
        used = words[1:3] if words[1] == "data" else words[1:2]
        assert main([*used, "--help"]) == 0, line
        said = capsys.readouterr().out
        own = words[: words.index("--")] if "--" in words else words
        unknown = [word for word in own if word.startswith("--") and word not in said]
        assert not unknown, line
