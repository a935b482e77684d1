"""Names of classes and files as text that cannot act: on a terminal, in a picture or spreadsheet.

They are data, and may hold anything that JSON or a file system allows.
"""

import unicodedata

_ACTING = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters, half surrogate pairs, and separators of lines."""
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text after them."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take for the beginning of a formula; OWASP, "CSV Injection"."""


def printable(text: str) -> str:
    """The text, every character that a terminal would obey replaced by a Python escape."""
    if text.isprintable() and _REORDERING.isdisjoint(text):
        return text
    return "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) in _ACTING or letter in _REORDERING:
        return letter.encode("unicode_escape", "surrogatepass").decode()
    return letter


def printable_lines(text: str) -> str:
    """`printable` of each line of a text that we broke into lines ourselves."""
    return "\n".join(map(printable, text.split("\n")))


def csv_cell(text: str) -> str:
    """A cell that spreadsheets show and do not compute; numbers stay what they are.

    A formula has an apostrophe before it, and one more than it had where it has some already.
    """
    text = printable(text)
    if not _is_formula(text.lstrip("'")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def from_csv_cell(cell: str) -> str:
    """The text that `csv_cell` made this cell of, but for escapes."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell.lstrip("'")) else cell


def _is_formula(text: str) -> bool:
    return len(text) > 1 and text.startswith(_FORMULA)  # a sign alone computes nothing


def counted(number: int, noun: str) -> str:
    """A number of things, such as "1 image" or "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
