"""The paper's mechanism: what the loss sees of objects of each size, in pairs of base and JOL."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.study import runs
from bench.study.analysis import Effect, effect, in_words, together
from bench.study.data import DATA, SCENES
from bench.study.training import SAMPLE_COLUMNS, SAMPLES, SIZES

Seen = Mapping[str, Any]
"""A line of SAMPLE_COLUMNS."""
KEYS = [name for name in SAMPLE_COLUMNS if name not in SAMPLES]
FEWEST = 30
"""Positives of a size from which on their scores are looked at."""
FORMS = {"share": ".1f", "correlation": ".2f", "s_loc": ".2f", "s_cls": ".2f"}
"""What is compared of a size, and its digits."""
NAMES = ("share", "correlation", "IoU", "class score")
HEADER = ("data", "detector", "size", "pairs", *(x for n in NAMES for x in (n, "JOL less base")))


def read(path: Path, backbone: str) -> list[Seen]:
    """What the loss saw, with numbers for SAMPLES, seed and step; of a run done twice the last."""
    lines = [line for line in runs.lines_of(path) if None not in line.values()]
    last = {tuple(line[name] for name in KEYS): line for line in lines}
    return [
        {**line, **{name: float(line[name] or math.nan) for name in ("seed", "step", *SAMPLES)}}
        for line in last.values()
        if line["backbone"] == backbone
    ]


def known(line: Seen, name: str) -> bool:
    """Whether a line says anything of `name`."""
    return not math.isnan(line[name]) and (name == "share" or line["samples"] >= FEWEST)


def lines(seen: Sequence[Seen]) -> Iterator[Sequence[str]]:
    """By HEADER: a line for each data set, detector and size, and one over several data sets."""
    ends = _ends(seen)
    for detector in dict.fromkeys(x["detector"] for x in seen):
        for size in SIZES:
            every = []
            for data in DATA:
                pairs = ends.get((data, detector, size), [])
                if pairs:
                    found = [_compare(pairs, name) for name in FORMS]
                    every.append([difference for _, difference in found])
                    yield data, detector, size, str(len(pairs)), *_cells(found)
            if len(every) > 1:
                whole = [(math.nan, together(effects)) for effects in zip(*every, strict=True)]
                pairs_of_all = max(e.pairs for _, e in whole)
                yield "all", detector, size, str(pairs_of_all), *_cells(whole)


def _ends(seen: Sequence[Seen]) -> dict[tuple[str, str, str], list[tuple[Seen, Seen]]]:
    """Data, detector and size → JOL's and base's last lines of each seed that has both."""
    last: dict[tuple[str, str], float] = {}
    for x in seen:
        where = x["data"], x["detector"]
        last[where] = max(last.get(where, 0), x["step"])
    found: dict[tuple[str, str, str], dict[float, dict[str, Seen]]] = {}
    for x in seen:
        where = x["data"], x["detector"]
        if x["step"] == last[where]:
            found.setdefault((*where, x["size"]), {}).setdefault(x["seed"], {})[x["loss"]] = x
    return {
        where: [(by["jol"], by["base"]) for _, by in sorted(seeds.items()) if len(by) == 2]
        for where, seeds in found.items()
    }


def _compare(pairs: Sequence[tuple[Seen, Seen]], name: str) -> tuple[float, Effect]:
    """The mean over base's runs, and JOL less base; a scene's only size has all of the loss."""
    says = name != "share" or pairs[0][0]["data"] not in SCENES
    good = [(j[name], b[name]) for j, b in pairs if says and known(j, name) and known(b, name)]
    return effect([b for _, b in good]).mean, effect([j - b for j, b in good])


def _cells(found: Sequence[tuple[float, Effect]]) -> Iterator[str]:
    for (base, difference), form in zip(found, FORMS.values(), strict=True):
        yield "" if math.isnan(base) else f"{base:{form}}"
        yield in_words(difference, f"+{form}")
