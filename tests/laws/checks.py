"""Annotations: what does not keep them is found, however many calls before it did."""

import jaxtyping
import pytest
import sparing
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from bitwright.grids.integer import Integer
from bitwright.linalg import objective


def test_calls_of_another_kind_are_checked_after_any_number_that_were_right():
    grid, x = Integer(4), torch.randn(2, 16)
    p = grid.fit(x)
    for _ in range(3):
        grid.encode(x, p)
        objective(x, torch.eye(16))
    for wrong in (lambda: grid.encode(x[0], p), lambda: grid.encode(x.long(), p), lambda: objective(x, torch.eye(15))):
        with pytest.raises(TypeCheckError):
            wrong()
    with pytest.raises(TypeCheckError):
        Integer("many")


def test_what_a_call_returns_is_checked_at_first_and_now_and_then():
    def cut(x: Float[Tensor, "n"], how: list[int]) -> Float[Tensor, "n"]:
        return x[: how[0]]

    sparingly, x = jaxtyping.jaxtyped(cut, typechecker=beartype), torch.zeros(3)
    sparingly(x, [3])
    with pytest.raises(TypeCheckError):
        for _ in range(sparing.EVERY):
            sparingly(x, [2])
