"""Layout: which weights share parameters.

A matrix [out, inp] is tiled by blocks of `rows` x `cols`; the weights of one block are one group and share one set of grid
parameters. `None` means the whole axis, so the usual names are points of one plane:

    Layout(None, None)  tensor      Layout(1, None)  output channel     Layout(None, 1)  input channel
    Layout(1, 128)      groups      Layout(32, 32)   square blocks
"""

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """A block of `rows` x `cols` weights that share parameters; `None` is the whole axis."""

    rows: int | None = None
    cols: int | None = None

    def __post_init__(self) -> None:
        for size in (self.rows, self.cols):
            if size is not None and size < 1:
                raise ValueError(f"a block has at least one row and one column, not {size}; None is the whole axis")

    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Size of one block on a matrix of this shape."""
        return self.rows or shape[0], self.cols or shape[1]

    def tiles(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Blocks along each axis. Raises ValueError where the blocks do not tile the matrix."""
        if not self.fits(shape):
            raise ValueError(f"{self} does not tile a {shape[0]} x {shape[1]} matrix; ask `nearest` for one that does")
        rows, cols = self.block(shape)
        return shape[0] // rows, shape[1] // cols

    def fits(self, shape: tuple[int, int]) -> bool:
        rows, cols = self.block(shape)
        return shape[0] % rows == 0 and shape[1] % cols == 0

    def nearest(self, shape: tuple[int, int]) -> "Layout":
        """The largest block no larger than this one that tiles the matrix: a smaller group costs bits, never quality."""
        rows = self.rows and largest_divisor(shape[0], self.rows)
        cols = self.cols and largest_divisor(shape[1], self.cols)
        return Layout(rows, cols)

    def split(self, x: Shaped[Tensor, "out inp"]) -> Shaped[Tensor, "g n"]:
        """Groups as rows: group index runs over row blocks, then column blocks; within a group row by row."""
        shape = (x.shape[0], x.shape[1])
        (rows, cols), (down, across) = self.block(shape), self.tiles(shape)
        return x.reshape(down, rows, across, cols).permute(0, 2, 1, 3).reshape(down * across, rows * cols)

    def join(self, x: Shaped[Tensor, "g n"], shape: tuple[int, int]) -> Shaped[Tensor, "out inp"]:
        """Inverse of `split`."""
        (rows, cols), (down, across) = self.block(shape), self.tiles(shape)
        return x.reshape(down, across, rows, cols).permute(0, 2, 1, 3).reshape(shape)


def largest_divisor(n: int, limit: int) -> int:
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)
