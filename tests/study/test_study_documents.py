"""What the documents say of the study is what its rows say."""

import re
import shutil
from pathlib import Path

import pytest

from bench.study import report, runs
from bench.study.command import samples_file

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "bench/results/study.csv"
REPORT = ROWS.with_suffix(".md")
DOCUMENTS = ("docs/study.md", "docs/when.md", "docs/measurements.md", "README.md")
NUMBER = r"[+-]?\d+\.\d+"
INTERVAL = re.compile(rf"([+-]\d+\.\d+) to ({NUMBER})")
WITH_MEAN = re.compile(rf"({NUMBER})\*{{0,2}} [(|] ?\+?({NUMBER}) to ({NUMBER})")


def about_the_study(name: str) -> str:
    """The lines of a document that its rows decide."""
    text = (ROOT / name).read_text()
    if name in ("docs/study.md", "docs/when.md"):
        return text
    return "\n".join(line for line in text.splitlines() if "bench study" in line)


def numbers(pattern: re.Pattern[str], text: str) -> set[tuple[float, ...]]:
    return {tuple(map(float, found)) for found in pattern.findall(text)}


def test_the_report_is_of_the_rows(tmp_path):
    rows, samples = (shutil.copy(file, tmp_path) for file in (ROWS, samples_file(ROWS)))
    assert report.write(Path(rows), Path(samples), "resnet18") == REPORT.read_text()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_interval_is_one_of_the_report(name):
    text, source = about_the_study(name), REPORT.read_text()
    quoted = numbers(WITH_MEAN, text)
    assert quoted
    assert quoted <= numbers(WITH_MEAN, source)
    assert numbers(INTERVAL, text) <= numbers(INTERVAL, source)


@pytest.mark.parametrize("name", ("docs/study.md", "docs/measurements.md"))
def test_the_number_of_runs_is_that_of_the_rows(name):
    assert re.findall(r"(\d+) runs\b", about_the_study(name))[0] == str(len(runs.read(ROWS)))
