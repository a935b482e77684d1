"""The argument parser of `jol`, which reports every problem of a command line at once."""

import argparse
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

OPTION = re.compile("--?[a-zA-Z]")


class Parser(argparse.ArgumentParser):
    """Reports all wrong, unknown and missing arguments, a line each, and suggests what was meant.

    Attributes:
        check: problems of the arguments taken together, which holds only those that were given
            where the parser suppresses defaults; called with wrong ones as they were typed.
        wrong: names of the arguments whose values were wrong.
        split: words → how many of them are the command's own; the rest goes into `rest` as is.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.check: Callable[[argparse.Namespace], Iterable[str]] = lambda args: ()
        self.split: Callable[[Sequence[str]], int] | None = None
        self._problems: list[str] = []
        self._given: set[str] = set()
        self.wrong: set[str] = set()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but ends with all problems instead of the first."""
        assert args is not None
        words = list(args)
        rest: list[str] = []
        if self.split is not None:
            cut = self.split(words)
            words, rest = words[:cut], words[cut:]
        self._problems, self._given, self.wrong = [], set(), set()
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False  # argparse would name these and nothing else
        try:
            found, unknown = super().parse_known_args(words, namespace)
        finally:
            for action in required:
                action.required = True
        missing = [_name(action) for action in required if action.dest not in self._given]
        if missing:
            self._problems.append(f"the following arguments are required: {', '.join(missing)}")
        self._problems += self._unknown(unknown)
        self._problems += self.check(found)
        if self._problems:
            self.error(self._problems.pop())
        if self.split is not None:
            found.rest = rest
        return found, []

    def error(self, message: str) -> NoReturn:
        """End with the problems found so far and this one."""
        lines = [f"{self.prog}: {problem}" for problem in (*self._problems, message)]
        text = "\n".join([*lines, f"{self.prog} --help lists the options"]) + "\n"
        self.exit(2, text if speaks_for_its_machine() else None)

    def _unknown(self, words: Sequence[str]) -> Iterator[str]:
        """Problems: unknown options, and words before them; those after may be their values."""
        after_option = False
        after_dashes = False
        for word in words:
            after_dashes = after_dashes or word == "--"
            if OPTION.match(word) and not after_dashes:
                option, after_option = word.partition("=")[0], True
                yield f"unknown option {option}{meant(option, self._option_string_actions)}"
            elif not after_option:
                yield f"unexpected argument {word!r}"

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        self._given.add(action.dest)
        if action.nargs == argparse.PARSER and arg_strings[0] not in (action.choices or ()):
            self.error(f"unknown command {arg_strings[0]}{meant(arg_strings[0], action.choices)}")
        try:
            return super()._get_values(action, arg_strings)
        except argparse.ArgumentError as error:
            self._note(error)
        except ValueError:  # fewer than _match_argument wanted, noted there
            pass
        self.wrong.add(action.dest)
        return arg_strings

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError as error:
            self._note(error)
            return len(arg_strings_pattern) - len(arg_strings_pattern.lstrip("A"))

    def _note(self, error: argparse.ArgumentError) -> None:
        self._problems.append(f"{error.argument_name}: {error.message}")


def speaks_for_its_machine() -> bool:
    """Whether this process reports unusable arguments, of those that torchrun started with them."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["LOCAL_RANK"] == "0"


def meant(word: str, known: Iterable[Any] | None) -> str:
    """A question for the nearest of the known words; empty if none is near."""
    names = [str(name) for name in known or ()]
    initials = "--" + "".join(part[0] for part in re.findall("[a-z]+", word))
    if word.isdecimal():  # a number near another is another number
        return ""
    near = difflib.get_close_matches(word, names, 1) or [n for n in names if n == initials]
    return f"; did you mean {near[0]}?" if near else ""


def _name(action: argparse.Action) -> str:
    return "/".join(action.option_strings) or str(action.metavar or action.dest)
