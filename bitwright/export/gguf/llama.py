"""The Llama family in GGUF: names and shapes of its tensors, its configuration as metadata and back.

llama.cpp turns neighbouring pairs of a head (0 1, 2 3, ..), transformers turns the halves (0 d/2, 1 d/2+1, ..). So the rows of q
and k lie in another order in the file, head by head; a `Place` knows it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from bitwright.errors import BadRequest, in_a_line
from bitwright.export.gguf import rope
from bitwright.terms.base import Json

INPUTS, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Place:
    """A tensor: its name in the file and in transformers, its shape; `heads` > 0 where its rows are turned in pairs."""

    stored: str
    name: str
    shape: tuple[int, ...]
    heads: int = 0

    def order(self) -> Int64[Tensor, "rows"] | None:
        """For every row of the file the row of transformers; None where they are the same."""
        if not self.heads:
            return None
        return torch.arange(self.shape[0]).view(self.heads, 2, -1).transpose(1, 2).flatten()


@dataclass(frozen=True)
class Sizes:
    """What names and shapes follow from. `biased`: of attention, of the MLP; `own_head`: the head is not the embedding."""

    hidden: int
    layers: int
    inner: int
    heads: int
    kv: int
    head: int
    vocabulary: int
    biased: tuple[bool, bool]
    own_head: bool

    def places(self) -> Iterator[Place]:
        """All tensors."""
        q, kv, d = self.heads * self.head, self.kv * self.head, self.hidden
        yield Place(INPUTS, "model.embed_tokens.weight", (self.vocabulary, d))
        for i in range(self.layers):
            b, m = f"blk.{i}", f"model.layers.{i}"
            linears = [
                Place(f"{b}.attn_q", f"{m}.self_attn.q_proj", (q, d), self.heads),
                Place(f"{b}.attn_k", f"{m}.self_attn.k_proj", (kv, d), self.kv),
                Place(f"{b}.attn_v", f"{m}.self_attn.v_proj", (kv, d)),
                Place(f"{b}.attn_output", f"{m}.self_attn.o_proj", (d, q)),
                Place(f"{b}.ffn_gate", f"{m}.mlp.gate_proj", (self.inner, d)),
                Place(f"{b}.ffn_up", f"{m}.mlp.up_proj", (self.inner, d)),
                Place(f"{b}.ffn_down", f"{m}.mlp.down_proj", (d, self.inner)),
            ]
            yield Place(f"{b}.attn_norm.weight", f"{m}.input_layernorm.weight", (d,))
            yield Place(f"{b}.ffn_norm.weight", f"{m}.post_attention_layernorm.weight", (d,))
            for p in linears:
                yield Place(f"{p.stored}.weight", f"{p.name}.weight", p.shape, p.heads)
                if self.biased[".mlp." in p.name]:
                    yield Place(f"{p.stored}.bias", f"{p.name}.bias", p.shape[:1], p.heads)
        yield Place("output_norm.weight", "model.norm.weight", (d,))
        if self.own_head:
            yield Place(HEAD, "lm_head.weight", (self.vocabulary, d))


def configured(config: Mapping[str, Json]) -> Any:
    """A config.json with the defaults of transformers filled in. Raises BadRequest where these numbers make no model."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**config)
    except StrictDataclassError as error:
        raise BadRequest(f"transformers builds no model of this configuration ({in_a_line(error)}); use another model.") from None


def sizes(config: Any, own_head: bool) -> Sizes:
    c = config
    widths = c.hidden_size, c.num_hidden_layers, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
    return Sizes(*widths, c.vocab_size, (c.attention_bias, c.mlp_bias), own_head)


def refusal(config: Mapping[str, Json]) -> str | None:
    """Why a model has no place in a GGUF file of ours, from its configuration."""
    if config.get("model_type") != "llama":
        return f"GGUF is written for Llama models only yet, and this is {config.get('model_type')!r}; use the native format."
    told = configured(config)
    if told.hidden_act not in ("silu", "swish"):
        return f"llama.cpp has SiLU in Llama's MLP, and this model has {told.hidden_act!r}; use the native format."
    return rope.refusal(told.rope_parameters)


def metadata(config: Any) -> dict[str, Any]:
    """The keys of `llama.*`."""
    s = sizes(config, True)
    numbers = {
        "context_length": config.max_position_embeddings,
        "embedding_length": s.hidden,
        "block_count": s.layers,
        "feed_forward_length": s.inner,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv,
        "rope.dimension_count": s.head,
        "vocab_size": s.vocabulary,
    }
    if s.head * s.heads != s.hidden:
        numbers |= {"attention.key_length": s.head, "attention.value_length": s.head}
    found: dict[str, Any] = {f"llama.{key}": np.uint32(value) for key, value in numbers.items()}
    found["llama.attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    return found | rope.metadata(config.rope_parameters)


def read(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], divisors: Tensor | None) -> dict[str, Json]:
    """A config.json from metadata and the tensors that are there. Raises BadRequest where something is missing or no number."""
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind != "llama":
        raise BadRequest(f"The file holds a model of the architecture {kind!r}, and only 'llama' is read yet; use another model.")
    if integer(metadata, "llama.expert_count", 0, least=0):
        raise BadRequest("The file holds a mixture of experts, which is not read yet; use another model.")
    hidden, heads = (integer(metadata, f"llama.{key}") for key in ("embedding_length", "attention.head_count"))
    if hidden % heads and "llama.attention.key_length" not in metadata:
        raise BadRequest(f"The file says {heads} heads on a width of {hidden}, which they do not divide; download it again.")
    head = integer(metadata, "llama.attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := integer(metadata, f"llama.{key}", head)) != head:
            raise BadRequest(f"The file says llama.{key} {other} with heads of {head}, which is not read yet; use another model.")
    theta = real(metadata, "llama.rope.freq_base", 10000.0)
    embedding = shapes.get(INPUTS, (0, 0))
    found = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": integer(metadata, "llama.feed_forward_length"),
        "num_hidden_layers": integer(metadata, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": integer(metadata, "llama.attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": integer(metadata, "llama.context_length"),
        "rms_norm_eps": real(metadata, "llama.attention.layer_norm_rms_epsilon"),
        "vocab_size": integer(metadata, "llama.vocab_size", embedding[0]),
        "rope_parameters": rope.read(metadata, theta, divisors, head),
        "tie_word_embeddings": HEAD not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
    }
    for name in ("bos", "eos", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        known = integer(metadata, key, least=0) if key in metadata else None
        found[f"{name.replace('padding', 'pad')}_token_id"] = known
    return found


def integer(metadata: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    value = metadata.get(key, default)
    if value is None:
        raise BadRequest(f"The file lacks the metadata {key}; download it again.")
    if default is not None and value is default:
        return default
    if not isinstance(value, np.integer | int) or isinstance(value, bool) or not least <= value < 2**31:
        raise BadRequest(f"The metadata {key} is no whole number from {least} on; the file is damaged, download it again.")
    return int(value)


def real(metadata: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number as its shortest text says it: 1e-05, not the nearest float32."""
    value = metadata.get(key, default)
    if value is None:
        raise BadRequest(f"The file lacks the metadata {key}; download it again.")
    if not isinstance(value, np.floating | float) or not rope.positive(value):
        raise BadRequest(f"The metadata {key} is no positive number; the file is damaged, download it again.")
    return float(str(value))
