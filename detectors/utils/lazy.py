"""Public names of a package that are imported at their first use, so that `jol --help` is quick."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def names_of(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """The `__getattr__` (PEP 562) and `__all__` of a package.

    Args:
        package: its name.
        modules: module of the package → the names it provides, separated by spaces.
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return get, sorted(module_of)
