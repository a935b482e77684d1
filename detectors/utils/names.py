"""Lists of names in messages and pictures: the first few, and how many more there are."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 5
"""Names of a list that a message has."""
VALUE = 80
"""Characters of another value that a message has."""
LONGEST = 36
"""Characters of a name that a message or a picture has."""
PATH = 240
"""Characters of a path that a message has."""


def shortened(name: str, most: int = LONGEST) -> str:
    """The name on one line, cut off after `most` characters."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most - 1]}…"


def short_path(path: object) -> str:
    """A path with its middle left out where it is longer than any that people give files."""
    text = str(path)
    return text if len(text) <= PATH else f"{text[: PATH // 2]}…{text[1 - PATH // 2 :]}"


def listed(names: Sequence[str]) -> str:
    """Such as "['car', 'ship']", and of more than SHOWN "['car', ... and 1,198 more]"."""
    shown = ", ".join(repr(shortened(str(name))) for name in names[:SHOWN])
    more = len(names) - SHOWN
    return f"[{shown} and {more:,} more]" if more > 0 else f"[{shown}]"


def unlike(here: Sequence[str], there: Sequence[str]) -> str:
    """What `listed` does not show of the difference between two lists; nothing of short ones."""
    if max(len(here), len(there)) <= SHOWN:
        return ""
    only = [name for name in here if name not in there]
    lacking = [name for name in there if name not in here]
    words = [f"only here {listed(only)}"] if only else []
    words += [f"only there {listed(lacking)}"] if lacking else []
    return f"; {', '.join(words) or 'their order differs'}"


def unlike_runs(classes: Mapping[str, Sequence[str]]) -> str:
    """Different lists of several runs by the runs' names."""
    first = next(iter(classes.values()))
    other = next((names for names in classes.values() if names != first), first)
    shown = ", ".join(f"{run!r}: {listed(names)}" for run, names in classes.items())
    return f"{{{shown}}}{unlike(first, other)}"


def changed(what: str, was: Any, now: Any) -> str:
    """That something has another value than before; of two lists, how they differ."""
    lists = all(isinstance(value, list) for value in (was, now))
    return f"{what} was {brief(was)}, is now {brief(now)}{unlike(was, now) if lists else ''}"


def brief(value: Any) -> str:
    """A value of any length and depth in a message: names as `listed`, else VALUE characters."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return listed(value)
    words = reprlib.Repr()
    words.maxstring = words.maxother = words.maxlong = VALUE
    words.maxlist = words.maxtuple = words.maxdict = words.maxset = VALUE
    words.maxlevel = 3
    text = words.repr(value)
    return text if len(text) <= VALUE else f"{text[: VALUE - 1]}…"
