"""The value and gradient of a choice: in closed form if it has one, else by autograd.

Signatures as in jolkernels.cpu.closed_form; without a closed form the reference is differentiated.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jolkernels.cpu.closed_form import Gradient, Pullback, Rowwise
from jolkernels.registry import CLOSED_FORM, REFERENCE


def classification(logits: Tensor, labels: Tensor, quality: Tensor, choice: Any) -> Rowwise:
    """Losses [N] of rows and their gradient [N, C]."""
    function = CLOSED_FORM["classification"].get(type(choice))
    if function is not None:
        return function(logits, labels, quality, choice)
    function = REFERENCE["classification"][type(choice)]

    def losses(z: Tensor) -> Tensor:
        return function(z, labels, quality, choice)

    return lambda: losses(logits), lambda: pull(losses, logits, logits.new_ones(len(logits)))


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
    return value, lambda: pull(function, x, torch.ones_like(value))


def pull(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    """The gradient for x, from the gradient g for function(x).

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
        return torch.autograd.grad(y, leaf, g, materialize_grads=True)[0]
