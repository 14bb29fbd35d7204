"""Wiring: what a model family is made of, named once: its blocks, its flows, and what engines fuse.

A flow is a tensor inside the model with the modules that write it and those that read it. `allows` says which matrices may be
multiplied in on the writers' side and their inverses on the readers' without changing the function; transforms are built on
nothing else. Names are module paths; in a block they start with the block's own path.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

Allowed = Literal["permutation", "diagonal", "orthogonal", "invertible"]


@dataclass(frozen=True)
class Flow:
    """A tensor of `width` features, `heads` equal parts that transforms treat alike (1: the whole)."""

    name: str
    width: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    allows: frozenset[Allowed]
    heads: int = 1
    norms: tuple[str, ...] = ()  # norms between writers and readers whose weights must be folded first


@dataclass(frozen=True)
class Wiring:
    """`blocks`: path of the list of repeated blocks; `embed`, `norm`, `head`: what comes before and after them.

    `call`: keyword arguments of the model's body on a calibration row. `picked`: what the head reads of what leaves the last norm.
    `renamed`: patterns of names in files that are other names in the model, and what replaces them.
    """

    blocks: str
    embed: tuple[str, ...]
    norm: tuple[str, ...]
    head: str
    flows: tuple[Flow, ...]
    fused: tuple[tuple[str, ...], ...]  # modules of a block that engines load as one matrix
    call: Mapping[str, Any] = field(default_factory=lambda: {"use_cache": False})
    picked: Callable[[Tensor], Tensor] = lambda states: states
    renamed: tuple[tuple[str, str], ...] = ()

    def block_list(self, model: nn.Module) -> nn.ModuleList:
        found: Any = model.get_submodule(self.blocks)
        return found

    def states(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """What the head reads, of what leaves the last block."""
        found: Tensor = self.picked(model.get_submodule(self.norm[-1]).to(hidden.device)(hidden))
        return found
