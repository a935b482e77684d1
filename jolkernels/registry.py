"""Which choices there are, by kind and name, and the functions that compute them.

Four tables, filled in by the modules that hold the choices and their functions: jolkernels.spec,
.reference, .cpu.closed_form and .kernels. `register` adds a choice from outside the package.
"""

import math
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol

from jolkernels.checks import one_of


class Spec(Protocol):
    """A choice: a frozen dataclass whose fields are its parameters."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Classification(Spec, Protocol):
    """A classification loss."""

    softmax: ClassVar[bool]
    soft: ClassVar[bool]


class Regression(Spec, Protocol):
    """A box loss."""

    on_codes: ClassVar[bool]


class Coding(Spec, Protocol):
    """How a box prediction encodes a box."""

    uses_priors: ClassVar[bool]


class Score(Spec, Protocol):
    """A location score."""


FLAGS = {
    "classification": ("softmax", "soft"),
    "regression": ("on_codes",),
    "coding": ("uses_priors",),
    "location_score": (),
}
"""The class variables that a spec of each kind must have."""

CHOICES: dict[str, dict[str, type]] = {kind: {} for kind in FLAGS}
"""The spec's class by kind and name."""
CLASS_SCORES = ("probability",)
"""What S_cls can be."""
REFERENCE: dict[str, dict[type, Any]] = {kind: {} for kind in FLAGS}
"""In plain PyTorch; a pair (decode, encode) for a coding. Signatures: jolkernels.reference."""
CLOSED_FORM: dict[str, dict[type, Any]] = {kind: {} for kind in FLAGS}
"""With their gradients, for the CPU; optional. Signatures: jolkernels.cpu.closed_form."""
KERNEL: dict[str, dict[type, Any]] = {kind: {} for kind in FLAGS}
"""Device functions in Triton; (decode, encode, pull) for a coding. Signatures: jolkernels.kernels.

Filled in when jolkernels.kernels is imported, which needs Triton.
"""


def register(
    kind: str,
    name: str,
    spec: type,
    *,
    reference: Any,
    closed_form: Any = None,
    kernel: Any = None,
) -> None:
    """Add a choice: JointOptimizationLoss then takes `name`, or an instance of `spec`.

        @dataclass(frozen=True)
        class Quartic:
            scale: float = 0.125
            on_codes: ClassVar[bool] = True

        def quartic(x, target, spec):  # [P, 4], [P, 4] -> [P]
            return spec.scale * ((x - target) ** 4).sum(1)

        register("regression", "quartic", Quartic, reference=quartic)

    The reference alone is enough: autograd differentiates it. It then runs as tensor operations,
    on a GPU too, where these wait for the device; a kernel makes it as fast as the built-in ones.

    Args:
        kind: "classification", "regression", "coding" or "location_score".
        name: the string that means `spec` with its defaults.
        spec: a frozen dataclass. Its fields are the parameters: numbers, strings or tuples of
            these, each with a default. Its class variables say how it is used: softmax (False) and
            soft for a classification loss, on_codes for a box loss, uses_priors for a coding.
        reference: a function in plain PyTorch, with the signature of its kind in
            jolkernels.reference; for a coding the pair (decode, encode).
        closed_form: a function that also returns the gradient, with the signature of its kind in
            jolkernels.cpu.closed_form; None: autograd differentiates the reference.
        kernel: a @triton.jit device function with the signature of its kind in jolkernels.kernels,
            its derivative included; for a coding (decode, encode, pull); None: no kernel.

    Raises:
        ValueError: a kind that does not exist, a name or class that this kind has already, a spec
            that cannot be written as text or has softmax (S_cls and the kernels know one softmax
            loss, cross entropy).
        TypeError: a spec that is not as described above, or something other than the functions.
    """
    kind = one_of("kind", kind, tuple(CHOICES))
    if not isinstance(name, str):
        raise TypeError(f"name: got {name!r}, wanted a string")
    if name in CHOICES[kind] or spec in CHOICES[kind].values():
        raise ValueError(f"{kind}: {name!r} or {spec!r} is registered already")
    check_spec(kind, spec)
    coding = kind == "coding"
    check_functions("reference", reference, 2 if coding else 1)
    if closed_form is not None:
        check_functions("closed_form", closed_form, 1)
    if kernel is not None:
        check_functions("kernel", kernel, 3 if coding else 1)

    CHOICES[kind][name] = spec
    REFERENCE[kind][spec] = reference
    if closed_form is not None:
        CLOSED_FORM[kind][spec] = closed_form
    if kernel is not None:
        KERNEL[kind][spec] = kernel


def check_spec(kind: str, spec: type) -> None:
    """Raise unless `spec` is a frozen dataclass that a loss can use as a choice of this kind."""
    if not isinstance(spec, type) or not is_dataclass(spec) or not spec.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"{kind}: got {spec!r}, wanted a frozen dataclass")
    for flag in FLAGS[kind]:
        if not isinstance(getattr(spec, flag, None), bool):
            raise TypeError(f"{kind}: {spec.__name__}.{flag}: wanted True or False")
    if getattr(spec, "softmax", False):
        raise ValueError(f"{kind}: {spec.__name__}.softmax: only cross entropy has one")
    check_params(kind, spec())


def check_params(kind: str, choice: Any) -> None:
    """Raise ValueError unless operators, whose settings are text, can be given this choice."""
    if not all(map(is_plain, params(choice))):
        raise ValueError(f"{kind}: {choice!r} has parameters other than numbers and strings")


def is_plain(value: Any) -> bool:
    """Whether `value` is a finite number or a string, not of a subclass, or a tuple of these."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (int, bool, str)


def check_functions(name: str, given: Any, count: int) -> None:
    """Raise unless `given` is a function or, if `count` > 1, a tuple of `count` functions."""
    functions = given if count > 1 else (given,)
    if not isinstance(functions, tuple) or len(functions) != count:
        raise TypeError(f"{name}: got {given!r}, wanted a tuple of {count} functions")
    if not all(map(callable, functions)):
        raise TypeError(f"{name}: got {given!r}, wanted a function")


def params(choice: Spec) -> tuple[Any, ...]:
    """The fields of a spec, in order."""
    return tuple(getattr(choice, field.name) for field in fields(choice))


def resolve(kind: str, choice: object) -> Any:
    """The spec that `choice`, a name or a spec, means; `kind` is a key of CHOICES.

    Raises:
        TypeError: `choice` is neither a string nor a spec of this kind.
        ValueError: an unknown name, or parameters that are not plain numbers and strings.
    """
    choices = CHOICES[kind]
    if isinstance(choice, str):
        if choice not in choices:
            raise ValueError(f"{kind}: got {choice!r}, wanted one of {', '.join(choices)}")
        choice = choices[choice]()
    elif type(choice) not in choices.values():
        wanted = ", ".join(c.__name__ for c in choices.values())
        raise TypeError(
            f"{kind}: got {choice!r}, wanted a name or one of {wanted} (jolkernels.spec)"
        )
    check_params(kind, choice)
    return choice
