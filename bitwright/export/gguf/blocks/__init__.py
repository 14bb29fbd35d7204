"""The bytes of GGUF tensors as plain arrays, and back: BLOCKS maps the name of a type to its codec (blocks/base.py)."""

from bitwright.export.gguf.blocks.base import Block
from bitwright.export.gguf.blocks.kquants import KQUANTS
from bitwright.export.gguf.blocks.plain import PLAIN
from bitwright.export.gguf.blocks.simple import SIMPLE
from bitwright.export.gguf.blocks.ternary import Trits

BLOCKS: dict[str, Block] = {block.name: block for block in (*PLAIN, *SIMPLE, Trits(), *KQUANTS)}
