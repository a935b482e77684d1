"""An extension of griffe: public functions have the signatures that Python shows.

Those of the loss take *args and **kwargs in their source and hand them on (settings.hands_on).
"""

import inspect
import pydoc
import re
from typing import Any

import griffe

MODULES = ("jolkernels.loss",)
"""Modules whose functions are looked at."""


class Signatures(griffe.Extension):
    """Parameters as inspect.signature has them."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Replace the parameters of a function of MODULES."""
        if not func.path.startswith(MODULES):
            return
        shown = inspect.signature(pydoc.locate(func.path))
        func.parameters = griffe.Parameters(*map(parameter, shown.parameters.values()))


def parameter(shown: inspect.Parameter) -> griffe.Parameter:
    """The same for griffe."""
    empty = inspect.Parameter.empty
    kind = griffe.ParameterKind[shown.kind.name.lower()]
    annotation = None if shown.annotation is empty else named(shown.annotation)
    default = None if shown.default is empty else repr(shown.default)
    return griffe.Parameter(shown.name, annotation=annotation, kind=kind, default=default)


def named(annotation: Any) -> str:
    """An annotation without the modules of its names."""
    return re.sub(r"\b(\w+\.)+(?=[A-Za-z_])", "", inspect.formatannotation(annotation))
