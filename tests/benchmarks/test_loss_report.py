"""The benchmark's rows as a file, a comparison and plots; what is noise is marked."""

import dataclasses
import math
import os

import pytest
import torch

from bench.loss import measure, plots, report
from bench.loss.cases import CASES, SWEEP, Name

OURS = Name.OURS
ABOUT = report.machine(torch.device("cpu"))
HERE = ("rcnn-9", 1024, 9, "float32")


def rows_of(*medians, spread=0.1):
    return [
        report.row(
            ABOUT, HERE, f"p{i}", "both, clock", "ms",
            measure.Sample(m, m - spread, m + spread, 9),
        )
        for i, m in enumerate(medians)
    ]  # fmt: skip


def test_a_file_gives_back_what_was_written(tmp_path):
    rows = [*rows_of(1 / 3, 2e-9), report.row(ABOUT, HERE, OURS, "error", "relative", math.inf)]
    report.write_csv(tmp_path / "x.csv", rows)
    assert report.read_csv(tmp_path / "x.csv") == rows
    with pytest.raises(ValueError, match=r"nowhere\.csv: cannot be read"):
        report.read_csv(tmp_path / "nowhere.csv")
    for text in ("a,b\n1,2\n", ",".join(report.FIELDS) + "\n" + "x," * 17 + "y\n"):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.csv: is no table"):
            report.read_csv(tmp_path / "bad.csv")


def test_a_processor_is_named_with_its_vectors_and_threads():
    """Virtual ones may share a name, and not the instructions that decide their times."""
    name, vectors, threads = report.machine(torch.device("cpu"))["machine"].rsplit(", ", 2)
    assert name and vectors == torch.backends.cpu.get_cpu_capability()
    assert threads == f"{torch.get_num_threads()} of {os.cpu_count()} threads"


def test_comparison_names_what_changed():
    text = report.comparison(rows_of(1.0, 2.0, 3.0), rows_of(1.05, 4.0, 3.0, 7.0))
    assert "3 numbers in both, 2 of them unchanged" in text and "Only now: rcnn-9 p3" in text
    lines = [line for line in text.splitlines() if line.startswith("| rcnn-9")]
    assert lines == ["| rcnn-9 float32 | p1 | both, clock | 2 | 4 | ms | 2.00 |"]
    once = [report.row(ABOUT, HERE, OURS, "first call", "s", v) for v in (1.0, 1.05, 1.2)]
    assert "1 of them unchanged" in report.comparison(once[:1], once[1:2])
    assert "0 of them unchanged" in report.comparison(once[:1], once[2:])
    wide = [dataclasses.replace(r, high=1.5) for r in rows_of(1.0)]
    late = [dataclasses.replace(r, low=1.4) for r in rows_of(1.55)]
    # ranges that overlap are not enough
    assert "0 of them unchanged" in report.comparison(wide, late)
    other = [dataclasses.replace(r, machine="another") for r in rows_of(1.0)]
    assert "machine: another before, " in report.comparison(other, rows_of(1.0))
    gone = report.comparison(rows_of(1.0, 2.0), [])
    assert "0 numbers in both" in gone and "Only before: rcnn-9 p0, rcnn-9 p1" in gone


def test_noise_is_marked():
    """Where 20 to 80 % of the samples are wider apart than half the median, and there alone."""

    def cells(spread):
        rows = []
        for name, unit in ((OURS, report.TIME), ("eager", report.TIME), ("eager", report.RATIO)):
            sample = measure.Sample(2.0, 2.0 - spread, 2.0 + spread, 9)
            rows.append(report.row(ABOUT, HERE, name, "both, clock", unit, sample))
        rows += [report.row(ABOUT, HERE, name, "agrees", "", 1.0) for name in (OURS, "eager")]
        return report.speed_table(rows, "both, clock").splitlines()[-1].split("|")[5:7]

    assert [cell.strip() for cell in cells(0.5)] == ["2", "2 ± 0.500"]
    assert [cell.strip() for cell in cells(0.51)] == ["2 (noise)", "2 ± 0.510 (noise)"]
    samples = {"base s": 0.1, "jol s": 0.6, f"jol {report.RATIO}": 0.2}
    rows = [
        report.row(ABOUT, ("step-fcos", 2, 800, "float32"), *name.split(" ", 1)[:1], "step",
                   name.split(" ", 1)[1], measure.Sample(1.0, 1.0 - s / 2, 1.0 + s / 2, 9))
        for name, s in samples.items()
    ]  # fmt: skip
    line = report.report(rows, ABOUT, []).splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[2:5]] == ["1", "1 (noise)", "1.000"]


def test_plots_show_the_numbers():
    def timed(case, provider, milliseconds):
        c = CASES[case]
        where = (case, c.rows, c.columns, "float32")
        return report.row(ABOUT, where, provider, "both, clock", "ms", milliseconds)

    rows = [timed(name, OURS, i + 1.0) for i, name in enumerate(reversed(SWEEP))]
    figure = plots.time_plot(rows, "both, clock")
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [CASES[name].rows for name in SWEEP]
    assert list(line.get_ydata()) == [float(len(SWEEP) - i) for i in range(len(SWEEP))]

    copy = report.row(ABOUT, ("copy", 0, 0, "float32"), "torch", "copy bandwidth", "GB/s", 10.0)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()][:2] == ["256", "1,024"]
    rows = [copy, timed("retinanet-8", OURS, 10.0), timed("retinanet-8", "eager", 20.0)]
    ours, eager, limit = plots.roofline_plot(rows, "both, clock").axes[0].lines
    share = 100 * 3 * 240_174 * 8 * 4 / 10e-3 / 10e9
    assert ours.get_ydata() == pytest.approx([share])
    assert eager.get_ydata() == pytest.approx([share / 2]) and limit.get_ydata() == [100, 100]
    assert plots.time_plot(rows, "both, clock") is None and plots.launches_plot(rows) is None
