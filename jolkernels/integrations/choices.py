"""What all integrations have in common: the choices of a loss, and a framework that is missing."""

from collections.abc import Mapping
from typing import Any, TypedDict

from torch.distributed import ProcessGroup

from jolkernels.spec import Score


class Choices(TypedDict, total=False):
    """The arguments of JointOptimizationLoss that are the user's; the framework's say the rest."""

    lam: float
    location_score: str | Score | None
    class_score: str | None
    weighting: str
    detach_weights: bool
    sync_group: ProcessGroup | None


def check_choices(given: Mapping[str, Any], where: str) -> None:
    """Refuse a name that is no choice; the values are JointOptimizationLoss's to check.

    Args:
        given: choices by name.
        where: who was given them, for the message.

    Raises:
        TypeError: names the argument.
    """
    for name in given:
        if name not in Choices.__annotations__:
            wanted = ", ".join(Choices.__annotations__)
            raise TypeError(f"{where}: got {name}, wanted some of {wanted}")


def missing(module: str, package: str) -> ImportError:
    """The error of an integration without its framework.

    Args:
        module: the integration's module, as imported.
        package: what to install.
    """
    return ImportError(f"{module} needs {package}: pip install {package}")
