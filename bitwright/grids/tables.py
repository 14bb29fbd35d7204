"""The values of tables, by name. Scalar tables ascend: nearest is a search; engines' order of codes is the exporters' business.

Small floats eXmY have X bits of exponent and Y of mantissa, subnormals, no infinity, and one zero; without mantissa they are powers
of two. BitMoD's fp3 and fp4 have one value more where a small float has minus zero. Cards: formats (section 1), bitmod.
"""

NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0),
)


def small_float(exponent: int, mantissa: int, bias: int, largest: float = float("inf")) -> tuple[tuple[float, ...], ...]:
    """All values of a sign, an exponent and a mantissa up to the largest that is a number, ascending."""
    steps = 2**mantissa
    above = {m / steps * 2.0 ** (1 - bias) for m in range(steps)}
    above |= {(1 + m / steps) * 2.0 ** (e - bias) for e in range(1, 2**exponent) for m in range(steps)}
    return tuple((v,) for v in sorted({s * v for v in above if v <= largest for s in (-1, 1)}))


def extended(above: tuple[float, ...], special: float) -> tuple[tuple[float, ...], ...]:
    """A symmetric table with zero and one special value, ascending."""
    return tuple((v,) for v in sorted({0.0, special, *above, *(-v for v in above)}))


TABLES: dict[str, tuple[tuple[float, ...], ...]] = {  # scalar tables ascend: nearest is then a search
    "nf4": tuple((v,) for v in NF4),
    "e2m0": small_float(2, 0, 1),
    "e3m0": small_float(3, 0, 3),
    "e2m1": small_float(2, 1, 1),
    "e1m2": small_float(1, 2, 1),
    "e2m3": small_float(2, 3, 1),
    "e3m2": small_float(3, 2, 3),
    "e2m5": small_float(2, 5, 1),
    "e3m4": small_float(3, 4, 3),
    "e4m3": small_float(4, 3, 7, 448.0),  # what would be 480 stands for NaN
    "e5m2": small_float(5, 2, 15, 57344.0),  # IEEE: the last exponent stands for infinity and NaN
    **{f"fp3{v:+d}": extended((1.0, 2.0, 4.0), float(v)) for v in (3, -3, 6, -6)},  # BitMoD: one value more
    **{f"fp4{v:+d}": extended((0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), float(v)) for v in (5, -5, 8, -8)},
    "ternary": ((-1.0,), (0.0,), (1.0,)),
    "binary": ((-1.0,), (1.0,)),
    "roots4": ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)),
}
