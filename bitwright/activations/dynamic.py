"""Dynamic: every token, or every group of a token's numbers, brings its own scale; only a second level is calibrated (NVFP4)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bitwright.grids.base import Grid, Kin, Leaf, Params
from bitwright.layout import Layout


@dataclass(frozen=True)
class Dynamic:
    """`group` numbers of a token share a scale; None: the whole token. The scales' top, if the grid has one, is stored."""

    grid: Grid
    group: int | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        return ("range",) if self.leaves else ()

    @property
    def leaves(self) -> dict[str, Leaf]:
        return {name: leaf for name, leaf in self.grid.leaves.items() if leaf.shared != 1}

    def refusal(self, inp: int) -> str | None:
        return f"groups of {self.group} do not divide inputs of {inp}" if self.group and inp % self.group else None

    def calibrate(self, bounds: Float[Tensor, "2"]) -> Params:
        p = self.grid.fit(bounds[None].float())
        return {name: p[name] for name in self.leaves}

    def __call__(self, x: Float[Tensor, "tokens inp"], stored: Params) -> Float[Tensor, "tokens inp"]:
        layout, shape = Layout(1, self.group), (x.shape[0], x.shape[1])
        parts = layout.split(x.float())
        p = self.grid.fit(parts, None, Kin(shared={name: leaf.expand(len(parts), -1) for name, leaf in stored.items()}))
        return layout.join(self.grid.decode(self.grid.encode(parts, p), p), shape).to(x.dtype)
