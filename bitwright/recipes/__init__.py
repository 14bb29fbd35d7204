"""One recipe per published system, a few lines of composition each: `recipes.gptq(bits=3, group=64)`."""

from functools import partial
from typing import Any

from bitwright import index
from bitwright.errors import BadRequest
from bitwright.recipes.adadim import adadim as adadim
from bitwright.recipes.adaquant import adaquant as adaquant
from bitwright.recipes.adaround import adaround as adaround
from bitwright.recipes.aqlm import aqlm as aqlm
from bitwright.recipes.baq import baq as baq
from bitwright.recipes.best import best as best
from bitwright.recipes.bitmod import bitmod as bitmod
from bitwright.recipes.bitstack import bitstack as bitstack
from bitwright.recipes.cora import cora as cora
from bitwright.recipes.cvxq import cvxq as cvxq
from bitwright.recipes.db_llm import db_llm as db_llm
from bitwright.recipes.discquant import discquant as discquant
from bitwright.recipes.double_rounding import double_rounding as double_rounding
from bitwright.recipes.fairy2i import fairy2i as fairy2i
from bitwright.recipes.fast_2bit import fast_2bit as fast_2bit
from bitwright.recipes.flexq import flexq as flexq
from bitwright.recipes.flexround import flexround as flexround
from bitwright.recipes.fp_diffusion import fp_diffusion as fp_diffusion
from bitwright.recipes.gptq import gptq as gptq
from bitwright.recipes.gradient_ptq import gradient_ptq as gradient_ptq
from bitwright.recipes.hqq import hqq as hqq
from bitwright.recipes.int_vs_fp import int_vs_fp as int_vs_fp
from bitwright.recipes.lrq import lrq as lrq
from bitwright.recipes.ptq1_61 import ptq1_61 as ptq1_61
from bitwright.recipes.ptqtp import ptqtp as ptqtp
from bitwright.recipes.pv_tuning import pv_tuning as pv_tuning
from bitwright.recipes.quantease import quantease as quantease
from bitwright.recipes.quantease_outlier import quantease_outlier as quantease_outlier
from bitwright.recipes.rtn import rtn as rtn
from bitwright.recipes.spqr import spqr as spqr
from bitwright.recipes.squeezellm import squeezellm as squeezellm
from bitwright.recipes.tuned import tuned as tuned
from bitwright.recipes.vq4dit import vq4dit as vq4dit
from bitwright.recipes.zeroquant_v2 import zeroquant_v2 as zeroquant_v2


def get(name: str) -> Any:
    """The function that makes a recipe, or that of a preset. Raises BadRequest with the names there are."""
    from bitwright.recipes.presets import PRESETS, preset
    from bitwright.recipes.presets_gguf import GGUF, MIXTURES, gguf

    known = name.lower().replace("_", "-")
    if known in PRESETS:
        return partial(preset, known)
    if known in GGUF or known in MIXTURES:
        return partial(gguf, known)
    if name not in index.RECIPES:
        known_names = ", ".join((*index.RECIPES, *PRESETS, *GGUF, *MIXTURES))
        raise BadRequest(f"There is no recipe {name!r}; choose one of {known_names}, or give a .toml file.")
    return index.load(index.RECIPES[name])
