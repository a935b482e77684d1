"""Options that benchmarks share, and what they prepare. Importing it takes no torch."""

import argparse
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from detectors.utils.argument_types import folder_to_write, number, one_of, positive
from detectors.utils.parser import Parser


def add_options(made: Parser, out: str, cases: Iterable[str], threads: int | None = None) -> None:
    """Add options with these defaults; cases are all by default, threads PyTorch's own.

    What depends on the machine is None until `settle` has seen it.
    """
    cases = list(cases)
    add = made.add_argument
    add(
        "--out",
        metavar="DIR",
        type=folder_to_write,
        default=out,
        help=f"folder to write to (default: {out})",
    )
    add(
        "--cases",
        nargs="+",
        type=one_of({name: name for name in cases}),
        default=cases,
        metavar="CASE",
        help=f"{', '.join(cases)} (default: all)",
    )
    add(
        "--threads",
        type=positive,
        default=threads,
        metavar="N",
        help=f"of PyTorch on a CPU (default: {threads or 'its own'})",
    )
    add(
        "--seconds",
        type=number(float, above=0),
        default=0.5,
        metavar="X",
        help="of samples for a provider of a case (default: 0.5)",
    )
    add(
        "--limit",
        type=number(float, above=0),
        metavar="X",
        help="seconds after which no further case is begun (default: 3600, on a GPU 400)",
    )


def add_providers(made: Parser, providers: Iterable[str], chosen: str) -> None:
    """Add options for a choice of providers, `chosen` by default, and of the device."""
    providers = list(providers)
    made.add_argument(
        "--providers",
        nargs="+",
        type=one_of({name: name for name in providers}),
        metavar="NAME",
        help=f"{', '.join(providers)} (default: {chosen})",
    )
    made.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="to measure on (default: cuda where there is a GPU)",
    )


def settle(options: argparse.Namespace) -> str:
    """Fill in what depends on the machine, and say which device.

    Raises:
        ValueError: no GPU where one was asked for.
    """
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.limit = options.limit or (400 if options.device == "cuda" else 3600)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU here")
    torch.set_num_threads(options.threads or torch.get_num_threads())
    return str(options.device)


def empty(out: Path, plots: Iterable[str] = ()) -> None:
    """Make a folder for results, or empty it of earlier ones."""
    from bench.loss import report

    out.mkdir(parents=True, exist_ok=True)
    for name in ("results.md", *plots):
        (out / name).unlink(missing_ok=True)
    report.write_csv(out / "results.csv", [])


@contextmanager
def empty_caches() -> Iterator[None]:
    """Compilers start from nothing, or the first call would depend on earlier runs."""
    names = "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"
    before = {name: os.environ.pop(name, None) for name in names}
    with tempfile.TemporaryDirectory() as caches:
        os.environ.update(dict.fromkeys(names, caches))
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value
