"""Where a command reads and writes: what cannot be used is said before the work, with status 2."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detectors.cli import main, make_parser
from detectors.utils.parser import Parser

DATA = ("--dataset", "coco", "--data-root", ".")
FOLDERS = {
    "train": ("--detector", "fcos", "--loss", "base", *DATA),
    "eval": ("--checkpoint", __file__, *DATA),
    "predict": (__file__, "--checkpoint", __file__),
    "demo": (),
    "sweep": ("2",),
    "bench": (),
    "data convert": ("--dataset", "sodad", "--data-root", ".", "--split", "val", "--out", "o.json"),
}
"""Commands that write a folder."""
FILES = {
    "data convert": (*DATA, "--split", "val"),
    "export": ("--checkpoint", __file__),
    "figure": ("3",),
}
"""Commands that write a file."""
SUFFIXES = {"export": ".pt2", "figure": ".png"}
WRITTEN = [
    *((name, "--out-images" if name == "data convert" else "--out", *FOLDERS[name])
    for name in FOLDERS),
    *((name, "--out", *FILES[name]) for name in FILES),
]  # fmt: skip


def words_of(name: str, option: str, value: object, *others: str) -> list[str]:
    """Options come before what `jol sweep` hands on."""
    return [*name.split(), *others, option, str(value)]


def below(kind: str, folder: Path) -> Path:
    """Something that is no folder, in which a command cannot write."""
    path = folder / kind
    if kind == "file":
        path.write_text("mine")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(folder / "nowhere")
    return path


@pytest.mark.parametrize("kind", ["file", "pipe", "link"])
@pytest.mark.parametrize("command", WRITTEN, ids=lambda command: " ".join(command[:2]))
def test_out_below_what_is_no_folder(
    command: tuple[str, ...],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    name, option, *others = command
    path = below(kind, tmp_path)
    before = path.lstat()
    for out in (path / "x", path / "x" / "y"):
        out = out.with_suffix(SUFFIXES.get(name, ""))
        assert main(words_of(name, option, out, *others)) == 2
        error = capsys.readouterr().err
        assert f"jol {name}: {option}: {path}: is a " in error or f"{out}: " in error
        assert len(error.splitlines()) == 2 and "--help" in error.splitlines()[1]
    assert list(tmp_path.iterdir()) == [path] and path.lstat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("command", WRITTEN, ids=lambda command: " ".join(command[:2]))
def test_out_where_nobody_may_write(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a read-only folder is for all but root, who runs some tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    name, option, *others = command
    out = (tmp_path / "x").with_suffix(SUFFIXES.get(name, ""))
    assert main(words_of(name, option, out, *others)) == 2
    error = capsys.readouterr().err
    assert f"jol {name}: {option}: {tmp_path}: cannot be written\n" in error
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, option, *others in WRITTEN:
        out = f"{'x' * 300}{SUFFIXES.get(name, '')}/y{SUFFIXES.get(name, '')}"
        assert main(words_of(name, option, out, *others)) == 2
        error = capsys.readouterr().err
        assert "File name too long" in error or "folder" in error
        assert len(error.splitlines()) == 2


def test_defaults_are_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("mine")
    for command in ("demo", "bench"):
        assert main([command]) == 2
        assert "--out: runs: is a file, wanted a folder" in capsys.readouterr().err
    assert (tmp_path / "runs").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        *([*words_of(name, option, "", *others)] for name, option, *others in WRITTEN),
        ["train", "--config", ""],
        ["train", "--train-images", ""],
        ["train", "--val-annotations", ""],
        ["train", "--data-root", ""],
        ["train", "--dataset", ""],
        ["train", "--detector", ""],
        ["train", "--backbone-weights", ""],
        ["eval", "--checkpoint", ""],
        ["eval", *DATA, "--split", ""],
        ["predict", "--checkpoint", ""],
        ["predict", ""],
        ["figure", "4", "--split", ""],
        ["figure", "4", "--base", ""],
        ["data", "check", "--images", ""],
        ["data", "check", *DATA, "--split", "val", ""],
        ["data", "stats", *DATA, "--split", ""],
        ["data", "stats", "--annotations", __file__, ""],
        ["data", "convert", *DATA, "--split", ""],
        ["table", "1", "--annotations", "mine", ""],
        ["table", "1", "--annotations", "", __file__],
        ["table", "2", "--runs", ""],
        ["bench", "--compare", ""],
        ["sweep", "2", "--out", "x", "--", "--detector", ""],
        ["sweep", "2", "--out", "x", "--", "--dataset", "", "--data-root", "."],
    ],
    ids=lambda words: " ".join(word or "''" for word in words if word != __file__),
)
def test_a_variable_that_is_not_set_names_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As in `jol eval --split "$SPLIT"`: neither the default nor the folder one is in."""
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "''" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def commands() -> Iterator[tuple[list[str], Parser]]:
    def below(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[Any]:
        nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not nested:
            yield words, parser
        for name, command in nested[0].choices.items() if nested else ():
            yield from below(command, [*words, name])

    yield from below(make_parser(), [])


@pytest.mark.parametrize(
    "words", [words for words, _ in commands() if words != ["bench"]], ids=" ".join
)
def test_a_wrong_value_of_any_option_is_no_traceback(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What is compared with it has to expect what was typed."""
    monkeypatch.chdir(tmp_path)
    (parser,) = (parser for name, parser in commands() if name == words)
    numbers = ["3", "4", "7"] if words == ["figure"] else [""]
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            for number in numbers:
                given = [
                    *words,
                    *filter(None, [number]),
                    action.option_strings[0],
                    "\x01?",
                    "--qqq",
                ]
                assert main(given) == 2, given
                assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
