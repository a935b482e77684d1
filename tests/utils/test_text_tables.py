"""Tables of strings: the columns stand below each other, and Markdown reads them as cells."""

from collections.abc import Iterator

from detectors.utils.text_tables import aligned, markdown

ROWS = [["", "AP", "AP50"], ["car", "1.5", "20.25"], ["a long name", "-", "7"]]


def test_words_stand_at_the_left_and_numbers_at_the_right() -> None:
    assert aligned(ROWS) == [
        "              AP   AP50",
        "car          1.5  20.25",
        "a long name    -      7",
    ]
    assert aligned([["a", "b"], ["long", "c"]], labels=2) == ["a     b", "long  c"]
    assert aligned([["a", "b"], ["1", "200"]], labels=0) == ["a    b", "1  200"]
    assert aligned([]) == []


def test_markdown() -> None:
    assert list(markdown(ROWS[0], [["a|b", "1", "2"]])) == [
        "|  | AP | AP50 |",
        "|---|---:|---:|",
        "| a\\|b | 1 | 2 |",
    ]


def test_a_row_is_printed_before_the_next_one_is_measured() -> None:
    measured = []

    def rows() -> Iterator[list[str]]:
        for name in "ab":
            measured.append(name)
            yield [name]

    lines = markdown(["name"], rows())
    assert [next(lines), next(lines), next(lines)] == ["| name |", "|---|", "| a |"]
    assert measured == ["a"]
