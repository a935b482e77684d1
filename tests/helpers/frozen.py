"""Numerical differences of losses that take some of their numbers as constants."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Parts = tuple[Tensor, ...]
Losses = Callable[..., Parts]


def frozen(losses: Losses, statement: Losses, inputs: tuple[Tensor, ...]) -> Losses:
    """A function for gradcheck: the losses' gradients at `inputs`, and values of the statement.

    Numerical differences of the losses would see what these take as constants: the quality of soft
    targets, the factor of CIoU, p^gamma of MAL. The statement, of the reference, makes each of them
    with Tensor.detach; here that gives, call by call, what it gave at `inputs`.
    """
    held: list[Tensor] = []
    plain = Tensor.detach

    def stated(detach: Callable[[Tensor], Tensor], given: tuple[Tensor, ...]) -> Parts:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "detach", detach)
            return statement(*given)

    def kept(t: Tensor) -> Tensor:
        held.append(plain(t).clone())
        return held[-1]

    wanted, base = stated(kept, inputs), [x.detach().clone() for x in inputs]
    torch.testing.assert_close(losses(*inputs), wanted, rtol=1e-10, atol=1e-10)

    def replayed(*given: Tensor) -> Parts:
        again = iter(held)
        values = stated(lambda _: next(again), given)
        assert next(again, None) is None
        if not all(map(torch.equal, given, base)):
            return values
        pairs = zip(losses(*given), values, strict=True)
        return tuple(loss + (value - loss).detach() for loss, value in pairs)

    return replayed
