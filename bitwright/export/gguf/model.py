"""A whole model as one GGUF file, written from any opened model and opened as one; also files that llama.cpp's own tools wrote.

What is compressed has a block type each (matrices.py), any mix of them. What is not stays what it was: F32, F16 or BF16, which
llama.cpp's CPU and GPU kernels all take, also as embedding and head; vectors (norms, biases) are F32, as it expects. With F16 and
BF16 its products round the activations to that type; the stored weights are exact in every case.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from bitwright.activations.base import Activation
from bitwright.errors import BadRequest
from bitwright.export import hf
from bitwright.export.base import Kept, Metas, Model, Opened
from bitwright.export.configuration import method
from bitwright.export.gguf import container, llama, matrices, rope, tokenizer, writer
from bitwright.export.gguf.llama import Place
from bitwright.export.gguf.opened import opened
from bitwright.export.gguf.types import ALIGNMENT, ALIGNMENT_KEY
from bitwright.progress import Progress
from bitwright.terms.base import stored_bits

FILE, SUFFIX = "model.gguf", ".gguf"
FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17,
    "Q6_K": 18, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38,
}  # fmt: skip  # general.file_type: the type of most weights; readers show it and use it for nothing


@dataclass(frozen=True)
class Gguf:
    """The format `gguf`. `ternary`: which of the two types of trits is written, the smaller or the faster."""

    ternary: Literal["TQ1_0", "TQ2_0"] = "TQ1_0"

    def refusal(self, model: Model) -> str | None:
        if why := llama.refusal(model.config):
            return why
        if model.inputs:
            return f"llama.cpp quantizes inputs in its own way, not as {next(iter(model.inputs))} asks; leave out activations."
        config = llama.configured(model.config)
        try:
            tokenizer.metadata(model.companions, config.vocab_size, model.config)
        except BadRequest as error:
            return str(error)
        known = {place.name for place in places(model, config)}
        for name, (_, dtype) in model.kept.items():
            if name not in known:
                return f"llama.cpp has no place for the tensor {name} in a Llama model; use the native format."
            if dtype not in FLOATS:
                return f"{name} has the type {dtype}, and GGUF keeps float32, float16 and bfloat16; convert the model first."
        for name, metas in model.metas.items():
            if f"{name}.weight" not in known:
                return f"llama.cpp has no place for the matrix {name} in a Llama model; use the native format."
            if isinstance(block := matrices.holder(metas, self.ternary), str):
                return f"GGUF cannot hold {name}: {block}."
        return None

    def remarks(self, model: Model) -> list[str]:
        names = sorted({self.block(name, metas).name for name, metas in model.metas.items()})
        trits = [name for name in names if name.startswith("TQ")]
        found = [f"llama.cpp runs {', '.join(names)} on CPU and GPU" if not trits else
                 f"llama.cpp runs {', '.join(names)} on the CPU; not every backend of it has {trits[0]}"]  # fmt: skip
        wide = [n for n, metas in model.metas.items() if self.bits(n, metas) > 1.05 * stored_bits(tuple(metas))]
        if wide:
            name = self.block(wide[0], model.metas[wide[0]]).name
            found.append(f"{len(wide)} matrices take more bytes than their codes need, such as {wide[0]}, held by {name}")
        if not any(path.name == "tokenizer.json" for path in model.companions):
            found.append("there was no tokenizer.json: the file has no vocabulary, llama.cpp takes token ids only")
        return found

    def block(self, name: str, metas: Metas) -> Any:
        """The type of a matrix. Raises BadRequest where it has none."""
        found = matrices.holder(metas, self.ternary)
        if isinstance(found, str):
            raise BadRequest(f"GGUF cannot hold {name}: {found}.")
        return found

    def bits(self, name: str, metas: Metas, inputs: Activation | None = None) -> int:
        block, (out, inp) = self.block(name, metas), metas[0]["shape"]
        return 8 * out * (inp // block.weights) * int(block.bytes)

    def kept_bytes(self, name: str, kept: Kept) -> int:
        shape, dtype = kept
        return prod(shape) * (dtype.itemsize if len(shape) > 1 else 4)

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        model, config = source.model, llama.configured(source.model.config)
        order = list(places(model, config))
        infos: dict[str, tuple[tuple[int, ...], str]] = {}
        for place in order:
            site = place.name.removesuffix(".weight")
            kind = self.block(site, model.metas[site]).name if site in model.metas else float_of(model.kept[place.name])
            infos[place.stored] = place.shape, kind
        divisors = rope.divisors(config.rope_parameters, config.head_dim)
        if divisors is not None:
            infos[rope.TENSOR] = tuple(divisors.shape), "F32"

        def chunks() -> Iterator[tuple[str, UInt8[Tensor, "rows nbytes"]]]:
            for i, place in enumerate(order):
                site = place.name.removesuffix(".weight")
                if site in model.metas:
                    (term,) = source.terms(site)
                    yield place.stored, matrices.pack(term, self.block(site, model.metas[site]), place.order())  # type: ignore[arg-type]
                else:
                    found = source.tensor(place.name)
                    found = found.float() if found.dim() == 1 else found
                    yield place.stored, as_bytes(found if place.heads == 0 else found[place.order()])
                progress("writing", i + 1, len(order))
            if divisors is not None:
                yield rope.TENSOR, as_bytes(divisors)

        companions = list(source.model.companions)
        head = general(infos, out.resolve().name) | llama.metadata(config)
        head |= tokenizer.metadata(companions, config.vocab_size, model.config)
        writer.write(out / FILE, head, infos, chunks())
        hf.copy(companions, out)

    def recognises(self, root: Path) -> bool:
        return file_of(root) is not None

    def open(self, root: Path) -> Opened:
        path = file_of(root)
        assert path is not None, root
        return opened(container.read(path), root)


def places(model: Model, config: Any) -> Iterator[Place]:
    own = "lm_head" in model.metas or "lm_head.weight" in model.kept
    return llama.sizes(config, own).places()


def float_of(kept: Kept) -> str:
    return FLOATS[kept[1]] if len(kept[0]) > 1 else "F32"


def as_bytes(x: Tensor) -> UInt8[Tensor, "rows nbytes"]:
    return x.contiguous().view(torch.uint8).reshape(x.shape[0], -1)


def general(infos: Mapping[str, tuple[tuple[int, ...], str]], name: str) -> dict[str, Any]:
    weights: dict[str, int] = {}
    for shape, kind in infos.values():
        weights[kind] = weights.get(kind, 0) + prod(shape)
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.file_type": np.uint32(FILE_TYPES[max(weights, key=weights.__getitem__)]),
        "general.quantization_version": np.uint32(2),
        ALIGNMENT_KEY: np.uint32(ALIGNMENT),
    }


def file_of(root: Path) -> Path | None:
    """The file itself, or the only one of a directory that holds no other weights."""
    if root.is_file():
        return root if root.suffix == SUFFIX else None
    if not root.is_dir() or method(root) is not None or any(root.glob("*.safetensors")):
        return None
    found = list(root.glob(f"*{SUFFIX}"))
    return found[0] if len(found) == 1 else None
