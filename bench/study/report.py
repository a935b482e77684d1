"""What the runs say, in tables, and beside them figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.study import figures, grid, mechanism, runs
from bench.study.analysis import Effect, in_words
from bench.study.answers import SIZES, Answer, answer, contrasts, family
from bench.study.grid import COMPARISONS, Cell, Choice
from bench.study.mechanism import Seen
from bench.study.runs import Found, Rows
from detectors.utils.text_tables import markdown


def write(path: Path, samples: Path, backbone: str) -> str:
    """Write NAME.md and figures beside the file of rows, NAME.csv; return the tables.

    Raises:
        RunError: there are no rows, or the file holds others.
    """
    rows = runs.read(path)
    if not rows:
        raise runs.RunError(f"{path}: holds no row; `run` writes them")
    answers = [answer(comparison, rows, backbone) for comparison in COMPARISONS]
    answers = [a for a in answers if a.cells]
    seen = mechanism.read(samples, backbone)
    if answers:
        figures.effects(answers, family(), path.with_name(f"{path.stem}.png"))
        figures.by_size(answers[0], path.with_name(f"{path.stem}-sizes.png"))
    if seen:
        figures.mechanism(seen, path.with_name(f"{path.stem}-samples.png"))
    text = "\n".join(document(answers, rows, seen, backbone)) + "\n"
    path.with_suffix(".md").write_text(text)
    return text


def document(
    answers: Sequence[Answer], rows: Rows, seen: Sequence[Seen], backbone: str
) -> Iterator[str]:
    """The lines of the tables."""
    size = family()
    own = {run: found for run, found in rows.items() if run.backbone == backbone}
    hours = sum(found["seconds"] for found in own.values()) / 3600
    machines = "; ".join(sorted({found["machine"] for found in own.values()}))
    commits = ", ".join(sorted({found["commit"] for found in own.values()}))
    yield "# Does JOL help?"
    yield ""
    yield "`python -m bench study report` writes this file; [study.md](../../docs/study.md) says"
    yield "what was asked, how, and what follows."
    yield ""
    yield f"{len(own)} runs ({backbone}), {hours:.1f} hours of one thread, beside other jobs, on"
    yield f"{machines}; commits {commits}."
    yield ""
    yield "AP in per cent. Differences are means over pairs of a seed, with 95 % intervals, of"
    yield "which one in twenty is wrong. A row of all cells is the mean of theirs; the intervals of"
    yield f"its last column, one for each of {size} questions, hold all together (Bonferroni), and"
    yield "are bold where they leave out 0."
    yield from apart([pair for a in answers for x in a.pairs.values() for pair in x.values()])
    yield from diverged(own)
    for a in answers:
        comparison = a.comparison
        yield ""
        yield f"## {comparison.question}"
        yield ""
        yield f"AP of {comparison.loss}, of {comparison.other}, and the first less the second."
        yield ""
        yield from markdown(
            (
                "data",
                "detector",
                "pairs",
                comparison.loss,
                comparison.other,
                "difference",
                *SIZES,
                "all together",
            ),
            table(a, size),
            2,
        )
        if len(a.cells) > 1 and a.by_seed().freedom > 0:
            yield ""
            yield "All, with a seed's mean as an observation, whatever it does to cells alike:"
            yield f"{in_words(a.by_seed())}. With a cell's mean as one, which has the chance of"
            each = (f"{name} {in_words(part.by_cell())}" for name, part in a.detectors.items())
            yield f"what was chosen in it: {'; '.join((in_words(a.by_cell()), *each))}."
    yield from few_and_many(answers, size)
    yield from chosen(answers, rows, backbone)
    yield from looked_at(seen)


def apart(pairs: Sequence[tuple[Found, Found]]) -> Iterator[str]:
    """How many pairs are equal in less than they should be."""
    for name, where in {"machine": "on two machines", "commit": "at two commits"}.items():
        count = sum(one[name] != other[name] for one, other in pairs)
        if count:
            yield ""
            yield f"{count} of {len(pairs)} pairs have their runs {where}."


def diverged(rows: Rows) -> Iterator[str]:
    """Runs that ended with a problem."""
    lines = [
        (run.part, run.data, Cell(run.data, run.detector, run.assigner).method, run.loss,
         f"{run.lr:g}", f"{run.anchor_scale:g}" if run.anchor_scale else "-",
         str(run.seed), found["problem"].split(";")[0])
        for run, found in rows.items() if found["problem"]
    ]  # fmt: skip
    if lines:
        yield ""
        yield "## Runs that diverged"
        yield ""
        yield "They ended at the first step whose loss or gradient was not finite, and count as"
        yield "AP 0, in choices and in differences."
        yield ""
        header = ("part", "data", "detector", "loss", "rate", "anchors", "seed", "problem")
        yield from markdown(header, lines, len(header))


def table(a: Answer, size: int) -> Iterator[Sequence[str]]:
    """A row a cell, one a detector if there are several, and one of all."""
    for cell, effects in a.cells.items():
        one, other = a.means(cell)
        yield (cell.data, cell.method, str(effects["AP"].pairs), f"{one:.1f}", f"{other:.1f}",
               *_effects(effects), "")  # fmt: skip
    for detector, own in a.detectors.items():
        overall = {metric: own.overall(metric) for metric in ("AP", *SIZES)}
        yield ("all", detector, str(overall["AP"].pairs), "", "", *_effects(overall), "")
    if len(a.cells) > 1:
        overall = {metric: a.overall(metric) for metric in ("AP", *SIZES)}
        wide = together_in_words(overall["AP"], size)
        yield ("all", "", str(overall["AP"].pairs), "", "", *_effects(overall), wide)


def _effects(effects: dict[str, Effect]) -> tuple[str, ...]:
    return tuple(in_words(effects[metric]) for metric in ("AP", *SIZES))


def together_in_words(e: Effect, size: int) -> str:
    """The interval that holds with those of a family of this size, bold where it leaves out 0."""
    if not e.freedom > 0:
        return ""
    low, high = e.interval(size)
    return f"**{low:+.1f} to {high:+.1f}**" if e.is_clear(size) else f"{low:+.1f} to {high:+.1f}"


def few_and_many(answers: Sequence[Answer], size: int) -> Iterator[str]:
    """How much more JOL gains in cells with few positives than in their like with many."""
    lines = [
        (many.data, many.detector, many.assigner, in_words(more), together_in_words(more, size))
        for many, more in contrasts(answers)
    ]
    if lines:
        yield ""
        yield "## Does JOL gain more where positives are few?"
        yield ""
        yield "JOL less base with the detector's own assigner, less the same with one that gives"
        yield "more positives."
        yield ""
        header = ("data", "detector", "many by", "difference of gains", "all together")
        yield from markdown(header, lines, 3)


def chosen(answers: Sequence[Answer], rows: Rows, backbone: str) -> Iterator[str]:
    """Rates and anchors."""
    lines: dict[tuple[str, ...], None] = {}
    for a in answers:
        for cell in a.cells:
            for loss in (a.comparison.other, a.comparison.loss):
                choice = grid.choose(cell, loss, rows, backbone)
                assert isinstance(choice, Choice)
                wanted = grid.run(cell, loss, choice, "tune", grid.TUNING_SEED, backbone)
                scale = _of(choice.anchor_scale, grid.SCALES) if choice.anchor_scale else "-"
                ap = f"{rows[wanted]['AP']:.1f}"
                lines[cell.data, cell.method, loss, _of(choice.lr, grid.RATES), scale, ap] = None
    yield ""
    yield "## What was chosen"
    yield ""
    rates, scales = (", ".join(f"{x:g}" for x in of.first) for of in (grid.RATES, grid.SCALES))
    yield f"Rates of {rates}; anchors of {scales} strides; while the smallest or the"
    yield "largest was the best, half or twice of it too. AP on the part tune. *: the last that"
    yield "would be tried, beyond which a better one may lie."
    yield ""
    yield from markdown(("data", "detector", "loss", "rate", "anchors", "AP"), lines, 3)


def _of(value: float, tried: grid.Tried) -> str:
    return f"{value:g} *" if value in (tried.least, tried.most) else f"{value:g}"


def looked_at(seen: Sequence[Seen]) -> Iterator[str]:
    """What the loss sees at the end of pairs of runs, by size."""
    lines = list(mechanism.lines(seen))
    if not lines:
        return
    yield ""
    yield "## What the loss sees"
    yield ""
    yield "At the end of pairs of runs, on images that no run learns from, by the objects' size:"
    yield "their share of the loss of all positives in per cent, Pearson's correlation of class"
    yield "score and IoU, and the means of these two. Of each the mean over base's runs, and JOL"
    yield "less base with its own 95 % interval; none of scores of fewer than"
    yield f"{mechanism.FEWEST} positives."
    yield ""
    yield from markdown(mechanism.HEADER, lines, 3)
