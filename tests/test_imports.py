"""The direction of imports: a package imports only what stands below it, none in a circle."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"bench"},
    {"bench.loss"},
    {"detectors"},  # cli, __main__
    {"detectors.commands"},
    {"detectors.paper"},
    {"detectors.training"},
    {"detectors.evaluation"},
    {"detectors.inference"},
    {"detectors.models", "detectors.data"},
    {"detectors.assigners"},
    {"detectors.utils"},
    {"detectors.errors"},
    {"jolkernels.integrations"},
    {"jolkernels"},  # what users import
    {"jolkernels.loss"},
    {"jolkernels.autograd"},
    {"jolkernels.dense_ops"},
    {"jolkernels.flattened"},
    {"jolkernels.ops"},
    {"jolkernels.kernels", "jolkernels.cpu"},
    {"jolkernels.reference"},
    {"jolkernels.layout"},
    {"jolkernels.dense"},
    {"jolkernels.dense_checks"},
    {"jolkernels.batch"},
    {"jolkernels.settings"},
    {"jolkernels.formulas"},
    {"jolkernels.spec", "jolkernels.process_groups"},
    {"jolkernels.registry"},
    {"jolkernels.checks"},
)
"""From the top down. A package or module may import what stands on a lower floor."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
EXCEPT = {("detectors", "bench"), ("detectors.commands", "bench")}
"""`jol bench` hands its arguments on."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("bench", "detectors", "jolkernels"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, ast.parse(file.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules of ours that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                file = ROOT / whole.replace(".", "/")
                is_module = file.with_suffix(".py").exists() or (file / "__init__.py").exists()
                yield whole if is_module else str(node.module)


def place(module: str) -> str:
    """The longest name in FLOORS that the module is or lies in."""
    parts = module.split(".")
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next(name for name in names if name in FLOOR)


def arrows() -> dict[str, set[str]]:
    """Module → the modules of ours it imports."""
    ours = dict(modules())
    return {
        name: {other for other in imported(tree) if other in ours} for name, tree in ours.items()
    }


def test_imports_run_down() -> None:
    found = [
        f"{module} imports {other}"
        for module, others in arrows().items()
        for other in others
        if (a := place(module)) != (b := place(other)) and (a, b) not in EXCEPT
        if FLOOR[a] >= FLOOR[b]
    ]
    assert not found


def test_no_module_imports_itself_in_a_circle() -> None:
    TopologicalSorter(arrows()).prepare()  # raises CycleError


def test_modules_do_not_import_their_own_package() -> None:
    found = [
        module
        for module, others in arrows().items()
        if module.count(".") and module.rpartition(".")[0] in others
    ]
    assert not found


def test_only_integrations_import_a_framework() -> None:
    allowed = {"torch", "triton", "numpy", "jolkernels"}
    found = defaultdict(set)
    standard = sys.stdlib_module_names
    for name, tree in modules():
        if name.startswith("jolkernels") and not name.startswith("jolkernels.integrations"):
            found[name] = {m.split(".")[0] for m in imported(tree)} - allowed - standard
    assert not {name: others for name, others in found.items() if others}


def test_the_check_sees_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = ast.parse("def f():\n    from detectors.commands import train\n")
    assert list(imported(planted)) == ["detectors.commands.train"]
    assert FLOOR[place("detectors.commands.train")] < FLOOR[place("detectors.utils.files")]
