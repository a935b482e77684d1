"""Lists of names in messages: the first few and a count, and what differs between two of them."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from detectors.commands.data_options import refuse_other_classes
from detectors.data.coco import check_coco
from detectors.data.object_counts import make_pool
from detectors.errors import DataError, RunError
from detectors.training.run_folder import refuse_other_data, refuse_other_settings
from detectors.utils.names import VALUE, brief, changed, listed, shortened, unlike, unlike_runs

MANY = [f"class {k}" for k in range(1203)]


def test_the_first_few_and_a_count() -> None:
    assert listed([]) == "[]" and listed(["a", "it's"]) == """['a', "it's"]"""
    assert listed(MANY[:5]) == str(MANY[:5])
    assert listed(MANY).endswith("'class 4' and 1,198 more]")
    assert listed(["\x1b[31mred", "x" * 99]) == f"['\\x1b[31mred', '{'x' * 35}…']"
    assert shortened("  a \n b ", 3) == "a b" and shortened("abcd", 3) == "ab…"


def test_what_differs() -> None:
    assert unlike(["a"], ["b"]) == ""  # both were shown whole
    other = [*MANY[:7], "rickshaw", *MANY[8:]]
    assert unlike(MANY, other) == "; only here ['class 7'], only there ['rickshaw']"
    assert unlike(MANY, MANY[:9]).startswith("; only here ['class 9', 'class 10'")
    assert unlike(MANY, MANY[::-1]) == "; their order differs"
    assert unlike_runs({"base": ["a"], "jol": ["b", "c"]}) == "{'base': ['a'], 'jol': ['b', 'c']}"
    three = unlike_runs({"a": MANY, "b": other, "c": MANY})
    assert three.endswith("}; only here ['class 7'], only there ['rickshaw']")
    assert brief({"a": ["b"] * 90}) == "{'a': [" + "'b', " * 14 + "'b…"
    assert changed("strides", [4, 8], None) == "strides was [4, 8], is now None"
    assert changed("classes", MANY, other).endswith("only there ['rickshaw']")


def test_a_value_of_any_length_and_depth() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert brief(deep) == "[[[[...]]]]"
    name = brief("x" * 5000 + ".png")
    assert len(name) == VALUE and name.startswith("'xxx") and name.endswith("xxx.png'")
    assert len(brief(10**4000)) == len(brief([10**30] * 9)) == VALUE


class Data:
    source = "val.json"
    class_names = MANY
    category_ids: ClassVar = list(range(len(MANY)))
    ground_truth: ClassVar = {"annotations": [{"category_id": k} for k in range(len(MANY))]}


def coco(names: list[str]) -> Any:
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 9, "height": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 8, "bbox": [1, 1, 5, 5]}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
    }
    return check_coco(content, "x.json", None)


def test_a_thousand_classes_are_told_in_a_short_line(tmp_path: Path) -> None:
    """A line had 55,585 characters."""
    other = [*MANY[:7], "rickshaw", *MANY[8:]]
    for error, named, refuse in (
        (
            DataError,
            ("class 7", "1,198 more"),
            lambda: refuse_other_classes(Data(), "best.pt", other, []),  # type: ignore[arg-type]
        ),
        (
            RunError,
            ("rickshaw", "class 7", "1,198 more"),
            lambda: refuse_other_data("run", {"classes": other}, {"classes": MANY}),
        ),
        (
            RunError,
            ("rickshaw", "class 7", "1,198 more"),
            lambda: refuse_other_settings("run", {"strides": other}, {"strides": MANY}),
        ),
        (
            DataError,
            ("class 7",),
            lambda: make_pool([("a.json", coco(other)), ("b.json", coco(MANY))]),
        ),
    ):
        with pytest.raises(error) as caught:
            refuse()
        text = str(caught.value)
        assert all(word in text for word in named)
        assert len(text) < 400 and "\n" not in text
