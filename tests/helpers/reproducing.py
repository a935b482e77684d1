"""The command line of `jol reproduce` on a tiny tree, and the table that it leaves."""

import csv
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

TINY = ["--preset", "slim", "--batch-size", "1", "--crop", "48"]
TINY += ["--workers", "0", "--device", "cpu"]
QUICK = [*TINY, "--max-steps", "1"]
FCOS = ["--detectors", "fcos"]


def command(name: str, trees: Path, out: Path, *words: str, after: list[str] = QUICK) -> list[str]:
    root = ["--data-root", str(trees / name), "--out", str(out)]
    return ["reproduce", name, *root, *words, "--", *after]


def table_of(out: Path) -> list[dict[str, str]]:
    """The rows of table.csv."""
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


def has_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let the disk have so many bytes."""
    usage = namedtuple("usage", "total used free")(10**16, 0, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
