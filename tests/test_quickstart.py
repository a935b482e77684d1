"""docs/quickstart.md and docs/faq.md: their code runs and prints what they say."""

import re

import pytest
from documents import DOCS, check_console, code


def test_the_quickstart_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (block,), (printed,) = code("quickstart.md", "python"), code("quickstart.md", "text")
    exec(block, {})
    number = re.compile(r"-?\d+\.?\d*")
    got = [float(x) for x in number.findall(capsys.readouterr().out)]
    assert got == pytest.approx([float(x) for x in number.findall(printed)], abs=0.011)
    assert len(got) == 9


def test_the_answers_of_the_faq() -> None:
    assert check_console("faq.md") > 30


def test_each_answer_has_code_or_a_link() -> None:
    """What the answers without code say is measured or tested where they lead."""
    for section in (DOCS / "faq.md").read_text().split("\n## ")[1:]:
        assert "```pycon" in section or "](" in section, section
