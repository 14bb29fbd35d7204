"""The numbers that a GGUF file uses for types, of tensors and of metadata values.

A tensor's rows are cut into blocks along the input axis; a type is known by the weights in a block and the bytes they take, which
is all that is needed to find and check a tensor's bytes. Types that llama.cpp has dropped (their numbers are never used again) or
that are newer than this table have no entry.
"""

from typing import Any, NamedTuple

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # the same bytes; version 3 only allows big-endian files besides
VERSION = 3
ALIGNMENT, ALIGNMENT_KEY = 32, "general.alignment"
MAX_DIMS = 4


class Kind(NamedTuple):
    """A tensor type: its number in the file, the weights of a block and the bytes of a block."""

    id: int
    weights: int
    bytes: int


KINDS = {
    "F32": Kind(0, 1, 4), "F16": Kind(1, 1, 2), "BF16": Kind(30, 1, 2), "F64": Kind(28, 1, 8),
    "I8": Kind(24, 1, 1), "I16": Kind(25, 1, 2), "I32": Kind(26, 1, 4), "I64": Kind(27, 1, 8),
    "Q4_0": Kind(2, 32, 18), "Q4_1": Kind(3, 32, 20), "Q5_0": Kind(6, 32, 22), "Q5_1": Kind(7, 32, 24),
    "Q8_0": Kind(8, 32, 34), "Q8_1": Kind(9, 32, 40), "Q1_0": Kind(41, 128, 18),
    "Q2_K": Kind(10, 256, 84), "Q3_K": Kind(11, 256, 110), "Q4_K": Kind(12, 256, 144), "Q5_K": Kind(13, 256, 176),
    "Q6_K": Kind(14, 256, 210), "Q8_K": Kind(15, 256, 292),
    "IQ1_S": Kind(19, 256, 50), "IQ1_M": Kind(29, 256, 56), "IQ2_XXS": Kind(16, 256, 66), "IQ2_XS": Kind(17, 256, 74),
    "IQ2_S": Kind(22, 256, 82), "IQ3_XXS": Kind(18, 256, 98), "IQ3_S": Kind(21, 256, 110),
    "IQ4_NL": Kind(20, 32, 18), "IQ4_XS": Kind(23, 256, 136),
    "TQ1_0": Kind(34, 256, 54), "TQ2_0": Kind(35, 256, 66), "MXFP4": Kind(39, 32, 17), "NVFP4": Kind(40, 64, 36),
}  # fmt: skip
NAMES = {kind.id: name for name, kind in KINDS.items()}

BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"), 5: np.dtype("<i4"),
    6: np.dtype("<f4"), 10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
