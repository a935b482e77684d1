"""Which choices there are, by kind and name, and the functions that compute them.

Four tables, filled in by the modules that hold the choices and their functions: jolkernels.spec,
.formulas, .cpu.closed_form and .kernels. `register` adds a choice from outside the package.
"""

import math
import re
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol

from jolkernels.checks import one_of


class Spec(Protocol):
    """A choice: a frozen dataclass whose fields are its parameters."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Classification(Spec, Protocol):
    """A classification loss.

    With `takes_targets` = True, which a `soft` one has anyway, it can be given class_targets.
    """

    softmax: ClassVar[bool]
    soft: ClassVar[bool]


class Regression(Spec, Protocol):
    """A box loss. One with a method `terms` is the sum of others; see the function `terms`."""

    on_codes: ClassVar[bool]


class Coding(Spec, Protocol):
    """How a box prediction encodes a box. With `coded_targets` = True targets come as codes too."""

    uses_priors: ClassVar[bool]


class Score(Spec, Protocol):
    """A location score. With `in_pixels` = True it depends on the unit of the boxes."""


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
"""In plain PyTorch; a pair (decode, encode) for a coding. Signatures: jolkernels.formulas."""
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

    docs/adding-a-loss.md has an example.

    The reference alone is enough: autograd differentiates it. It then runs as tensor operations,
    on a GPU too, where these wait for the device; a kernel makes it as fast as the built-in ones.

    Args:
        kind: "classification", "regression", "coding" or "location_score".
        name: the string that means `spec` with its defaults.
        spec: a frozen dataclass. Its fields are the parameters: numbers, strings or tuples of
            these, each with a default. Its class variables say how it is used: softmax (False) and
            soft for a classification loss, on_codes for a box loss, uses_priors for a coding.
        reference: a function in plain PyTorch, with the signature of its kind in
            jolkernels.formulas; for a coding the pair (decode, encode). A classification loss that
            gives one number a row, not one a column, does without class_weights.
        closed_form: a function that also returns the gradient, with the signature of its kind in
            jolkernels.cpu.closed_form; None: autograd differentiates the reference.
        kernel: a @triton.jit device function with the signature of its kind in jolkernels.kernels,
            its derivative included, boxes as tuples of four; for a coding (decode, encode, pull);
            None: no kernel.

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
    """Whether `value` is a finite number or a string, not of a subclass, or a tuple of these.

    A choice, such as the loss that Inner stands around, is plain if its parameters are.
    """
    if type(value) is tuple:
        return all(map(is_plain, value))
    if type(value) is float:
        return math.isfinite(value)
    if is_dataclass(value):
        return is_plain(params(value))  # type: ignore[arg-type]
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


def terms(choice: Any) -> tuple[tuple[float, Any], ...]:
    """A box loss as a sum of losses that have formulas of their own: (factor, loss) each."""
    parts = getattr(choice, "terms", None)
    return ((1.0, choice),) if parts is None else parts()


MOST_TERMS = 4
"""Terms of a box loss at most: of two losses, each with one around it."""


def written(kind: str, value: Any) -> Any:
    """A choice as {name: parameters}, for text; choices inside another are box losses."""
    if isinstance(value, tuple):
        return tuple(written("regression", item) for item in value)
    if value is None or not is_dataclass(value):
        return value
    (name,) = (name for name, choice in CHOICES[kind].items() if choice is type(value))
    return {name: written(kind, params(value))}  # type: ignore[arg-type]


def read(kind: str, value: Any) -> Any:
    """What `written` was given."""
    if isinstance(value, tuple):
        return tuple(read("regression", item) for item in value)
    if not isinstance(value, dict):
        return value
    ((name, parameters),) = value.items()
    return CHOICES[kind][name](*read(kind, parameters))


LONGEST = 500
"""Letters of a text for `parse`: some 40 losses in one another, at a depth that Python reads."""


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
EXPONENT = re.compile(r"\b[\d.]+[eE]$")
"""What comes before the + of 1e+2."""
IN_PARENTHESES = re.compile(r"^\((.*)\)$")


def resolve(kind: str, choice: object) -> Any:
    """The spec that `choice`, a text as `parse` reads it or a spec, means; a key of CHOICES.

    Raises:
        TypeError: `choice` is neither a string nor a spec of this kind.
        ValueError: an unknown name, or parameters that are not plain numbers and strings.
    """
    choices = CHOICES[kind]
    if isinstance(choice, str):
        choice = parse(kind, choice)
    elif type(choice) not in tuple(choices.values()):  # of a view torch 2.11 compiles no `in`
        wanted = ", ".join(c.__name__ for c in choices.values())
        raise TypeError(
            f"{kind}: got {choice!r}, wanted a name or one of {wanted} (jolkernels.spec)"
        )
    check_params(kind, choice)
    return choice


def parse(kind: str, text: str) -> Any:
    """The choice that a text names.

        iou                             its defaults
        iou:mode=log                    parameters by name, separated by commas
        delta:weights=(10, 10, 5, 5)
        inner:loss=ciou,ratio=0.7       a loss in another; in parentheses if it has parameters
        5*l1+2*giou                     a sum of two box losses

    Raises:
        ValueError: an unknown name or parameter, or a parameter twice or without a value.
        TypeError, ValueError: a value that the choice refuses.
    """
    if text in CHOICES[kind]:
        return CHOICES[kind][text]()
    if len(text) > LONGEST:
        raise ValueError(f"{kind}: got {len(text):,} letters, wanted at most {LONGEST}")
    parts, text = split(text, "+"), text.strip()
    if kind == "regression" and (len(parts) > 1 or len(split(text, "*")) > 1):
        if len(parts) > 2:
            raise ValueError(f"{kind}: got {text!r}, wanted a sum of at most two losses")
        return CHOICES[kind]["sum"](*map(weighted, parts), *[None] * (2 - len(parts)))
    name, colon, rest = text.partition(":")
    if name not in CHOICES[kind]:
        raise ValueError(f"{kind}: got {name!r}, wanted one of {', '.join(CHOICES[kind])}")
    choice, given = CHOICES[kind][name], {}
    names = choice.__match_args__  # type: ignore[attr-defined]  # torch.compile has no fields()
    for part in split(rest, ",") if colon else ():
        key, equals, value = part.partition("=")
        if key.strip() not in names or not equals:
            wanted = " or ".join(f"{name}=VALUE" for name in names) or "no parameter"
            raise ValueError(f"{kind}: {name}: got {part!r}, wanted {wanted}")
        if key.strip() in given:
            raise ValueError(f"{kind}: {name}: got {part!r}, wanted {key.strip()} once")
        given[key.strip()] = literal(value.strip())
    return choice(**given)


def weighted(term: str) -> tuple[float, str]:
    """The factor and the loss of a term such as 5*l1 or giou."""
    *factor, loss = split(term, "*")
    number = literal(factor[0].strip()) if factor else 1.0
    if len(factor) > 1 or isinstance(number, str):
        raise ValueError(f"regression: got {term!r}, wanted NUMBER*LOSS or LOSS")
    return number, IN_PARENTHESES.sub(r"\1", loss.strip())


def split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators outside of parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        exponent = EXPONENT.search(parts[-1])
        if letter == separator and depth == 0 and not exponent:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


WORDS = {"True": True, "False": False, "None": None}


def literal(text: str) -> Any:
    """A number, word or text in quotes, or a tuple of them; else the text as it is, less brackets.

    By hand, because torch.compile cannot trace ast.literal_eval.
    """
    if text in WORDS:
        return WORDS[text]
    if NUMBER.fullmatch(text):
        return float(text) if any(letter in text for letter in ".eE") else int(text)
    if text[:1] + text[-1:] not in ("()", "[]", "''", '""'):
        return text
    inner = text[1:-1]
    if "," not in inner:
        return inner
    parts = [part.strip() for part in split(inner.rstrip().removesuffix(","), ",")]
    items = tuple([literal(part) for part in parts])
    return inner if any([part in items for part in parts]) else items  # a text without quotes
