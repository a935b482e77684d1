"""The value and gradient of a choice: in closed form if it has one, else by autograd.

Signatures as in jolkernels.cpu.closed_form; without a closed form the reference is differentiated.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jolkernels.cpu.closed_form import Gradient, Pullback, Rowwise
from jolkernels.formulas.classification import sum_of_columns
from jolkernels.registry import CLOSED_FORM, REFERENCE


def classification(
    logits: Tensor,
    labels: Tensor,
    goal: Tensor,
    choice: Any,
    class_weights: Tensor | None,
) -> Rowwise:
    """Losses [N] of rows and their gradient [N, C]; class_weights are factors of columns, [C]."""
    function = CLOSED_FORM["classification"].get(type(choice))
    if function is not None:
        losses, gradient = function(logits, labels, goal, choice)
    else:
        function = REFERENCE["classification"][type(choice)]

        def losses_of(z: Tensor) -> Tensor:
            return function(z, labels, goal, choice)

        def losses() -> Tensor:
            return losses_of(logits)

        def gradient() -> Tensor:
            return pull(losses_of, logits)

    if class_weights is None:
        return lambda: sum_of_columns(losses(), None, choice), gradient
    return (
        lambda: sum_of_columns(losses(), class_weights, choice),
        lambda: gradient() * class_weights,
    )


def regression(x: Tensor, target: Tensor, choice: Any) -> tuple[Tensor, Gradient]:
    """Box losses [P] and their gradient [P, 4]."""
    function = CLOSED_FORM["regression"].get(type(choice))
    if function is not None:
        return function(x, target, choice)
    function = REFERENCE["regression"][type(choice)]
    return by_autograd(lambda x: function(x, target, choice), x)


def score(boxes: Tensor, targets: Tensor, alive: Tensor, choice: Any) -> tuple[Tensor, Gradient]:
    """Location scores [P] and their gradient [P, 4], 0 for boxes that are not `alive`."""
    function = CLOSED_FORM["location_score"].get(type(choice))
    if function is not None:
        value, gradient = function(boxes, targets, choice)
    else:  # autograd would multiply a degenerate box's infinite derivative by 0
        function = REFERENCE["location_score"][type(choice)]
        unit = boxes.new_tensor([0, 0, 1, 1])
        boxes, targets = (torch.where(alive[:, None], b, unit) for b in (boxes, targets))
        value, gradient = by_autograd(lambda x: function(x, targets, choice), boxes)
    return torch.where(alive, value, 0), lambda: torch.where(alive[:, None], gradient(), 0)


def decode(codes: Tensor, priors: Tensor, choice: Any) -> tuple[Tensor, Pullback]:
    """Boxes [P, 4] and the pullback from their gradient to that of the codes."""
    function = CLOSED_FORM["coding"].get(type(choice))
    if function is not None:
        return function(codes, priors, choice)
    decoder, _ = REFERENCE["coding"][type(choice)]

    def boxes(codes: Tensor) -> Tensor:
        return decoder(codes, priors, choice)

    return boxes(codes), lambda g: pull(boxes, codes, g)


def by_autograd(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Gradient]:
    """The value of `function` at x, one number a row, and its gradient."""
    value = function(x)
    return value, lambda: pull(function, x)


def pull(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor | None = None) -> Tensor:
    """The gradient for x, from the gradient g for function(x); None: from ones.

    An operator's body runs with autograd off, twice over: by the grad mode, and by the dispatcher,
    which under compilers and dispatch modes has gone past autograd already.
    """
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        if not y.requires_grad:  # a constant
            return torch.zeros_like(x)
        g = torch.ones_like(y) if g is None else g
        return torch.autograd.grad(y, leaf, g, materialize_grads=True)[0]
