"""The default values that the help of an option states, taken from the tables that hold them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from detectors.data.catalog import DATASETS, NamedDataset
from detectors.models.anchor_plans import SLIM_SIZES, longer_side
from detectors.models.presets import DETECTORS, PRESETS, Detector


def text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return " ".join(map(text, value))
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def of_presets(values: Mapping[str, Any]) -> str:
    """The value of most presets in words, then those of the others."""
    words = {preset: text(value) for preset, value in values.items()}
    usual = _most_common(words.values())
    others = [f"with {preset} {word}" for preset, word in words.items() if word != usual]
    return "; ".join([usual, *others])


def of_detectors(values: Callable[[Detector], Mapping[str, Any] | None]) -> str:
    """The value of most detectors in words, then those of the others, by preset."""
    rows = {name: found for name, row in DETECTORS.items() if (found := values(row))}
    return of_presets({preset: _of_rows(rows, preset) for preset in PRESETS})


def _of_rows(rows: Mapping[str, Mapping[str, Any]], preset: str) -> str:
    words = {name: text(row[preset]) for name, row in rows.items()}
    usual = _most_common(words.values())
    others: dict[str, list[str]] = {}
    for name, word in words.items():
        if word != usual:
            others.setdefault(word, []).append(name)
    return ", ".join([usual, *(f"{' and '.join(names)} {word}" for word, names in others.items())])


def of_datasets(usual: Any, name: str) -> str:
    """The usual value, then those of the data sets that have another."""
    others: dict[str, list[str]] = {}
    for key, dataset in DATASETS.items():
        if getattr(dataset, name) != getattr(NamedDataset, name):
            others.setdefault(text(getattr(dataset, name)), []).append(key)
    return "; ".join([text(usual), *(f"--dataset {', '.join(k)}: {v}" for v, k in others.items())])


def _most_common(words: Iterable[str]) -> str:
    return Counter(words).most_common(1)[0][0]


def anchor_scales(row: Detector) -> Mapping[str, Any] | None:
    """The scale of a detector's anchors by preset; slim's as the sizes that there are."""
    strides = {stride for other in DETECTORS.values() for stride in other.strides["slim"]}
    sizes = [size for stride in sorted(strides) for size in SLIM_SIZES[stride]]
    pixels = f"{sizes[0]} to {sizes[-1]} pixels by level"
    return None if row.has_points else {**row.scale, "slim": pixels}


def of_image_sizes() -> str:
    """The shorter side that images are resized to."""
    usual = NamedDataset.image_size
    return (
        f"{of_datasets(usual, 'image_size')}; the longer side at most {longer_side(usual)}; with "
        "slim images keep their size"
    )
