"""The table of a step's memory with many objects."""

import multiprocessing
import sys

import pytest

from bench import object_memory


class Here:
    """A pool whose process is this one: importing torch in another takes seconds."""

    def __init__(self, _processes):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def apply(self, function, given):
        return function(*given)


def test_the_table_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Pool", Here)
    words = ["--detectors", "fcos", "--presets", "slim", "--objects", "3", "--size", "64"]
    monkeypatch.setattr(sys, "argv", ["bench.object_memory", *words, "--threads", "1"])
    object_memory.main()
    head, _, row = capsys.readouterr().out.splitlines()
    assert "peak, GiB" in head
    name, preset, peak, forward, step, work = row.strip("| ").split(" | ")
    assert (name, preset) == ("fcos", "slim")
    assert float(peak) > 0.1 and 0 <= float(forward) <= float(step) and float(work) >= 0


@pytest.mark.slow
def test_each_row_has_its_own_process(capsys, monkeypatch):
    words = ["--detectors", "fcos", "--presets", "slim", "--objects", "3", "--size", "64"]
    monkeypatch.setattr(sys, "argv", ["bench.object_memory", *words])
    object_memory.main()
    assert "| fcos" in capsys.readouterr().out
