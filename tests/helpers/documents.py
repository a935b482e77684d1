"""The code of documents."""

import doctest
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def code(name: str, language: str, section: str = "") -> list[str]:
    """The fenced blocks of a document in a language, from a heading on to the next of its rank."""
    text = (DOCS / name).read_text()
    if section:
        start = text.index(f"\n{section}\n") + 1
        rank = section.split()[0]
        end = re.compile(rf"^#{{1,{len(rank)}}} ", re.M).search(text, start + len(section))
        text = text[start : end.start() if end else None]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


def check_console(name: str) -> int:
    """Run the blocks of >>> lines as one doctest; how many examples there are."""
    text = "\n".join(code(name, "pycon"))
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner().run(test, out=said.append)
    assert not failed, "".join(said)
    return tried
