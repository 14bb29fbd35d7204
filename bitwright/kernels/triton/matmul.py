"""Products with packed codes on a GPU: few tokens straight from the codes, many through pieces of the dense matrix."""

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from bitwright.kernels.packed import Packed
from bitwright.kernels.triton.few import few_product
from bitwright.kernels.triton.form import MOST, WIDTHS, Made, declines, worded
from bitwright.kernels.triton.many import many_product


def matmul(x: Float[Tensor, "n inp"], packed: Packed) -> Float[Tensor, "n out"] | None:
    if x.dtype not in (torch.float16, torch.bfloat16) or (x.device.type == "cpu" and not triton.knobs.runtime.interpret):
        return None
    made = packed.form("triton", WIDTHS, worded, declines)
    if made is None:
        return None

    def product(part: Float[Tensor, "n _"], found: list[Made]) -> Float[Tensor, "n _"]:
        few = len(part) <= MOST and all(made.group % 32 == 0 for made in found)
        return (few_product if few else many_product)(part, found, packed.shape[0])

    with torch.cuda.device_of(x):
        return packed.product(x, made, product)
