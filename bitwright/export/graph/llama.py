"""Llama as a graph: the architecture once, emitted through a small set of operators that ONNX and OpenVINO both have.

    h = E[ids];   per block  h += O softmax(R Q n(h) (R K n(h))^t / sqrt d + causal) V n(h);   h += D (silu(G n(h)) * U n(h))

`input_ids` [batch, sequence] in, `logits` [batch, sequence, vocabulary] in fp32 out. All tokens are computed on every call: there
is no cache of keys and values yet, so this is for scoring text and for checking, not for fast generation. There is no attention
mask either: rows of one batch are of one length, or padded on the right, where a causal model does not look. A row has at most
`max_position_embeddings` tokens.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bitwright.export.base import Model
from bitwright.terms.base import Json

PARTS = (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
STEP = 64  # of the coarse table of places
ROPES = ("default", "linear", "llama3", "yarn")  # frequencies that do not depend on the length of the text


@runtime_checkable
class Emitter(Protocol):
    """Writes operators. Values are the format's own; `apply` takes the names that ONNX gives to its operators."""

    def constant(self, values: Any, kind: type) -> Any:
        """A number, or an array of them, of the graph itself."""

    def kept(self, name: str) -> Any:
        """A stored tensor in fp32."""

    def rows(self, name: str, ids: Any) -> Any:
        """Rows of a stored tensor, in fp32."""

    def product(self, name: str, x: Any) -> Any:
        """x W^t in fp32, W coded or kept."""

    def apply(self, op: str, *inputs: Any, **attributes: Any) -> Any: ...


def refusal(model: Model) -> str | None:
    """Why there is no graph of this model; None where there is one."""
    config = model.config
    if config.get("model_type") != "llama":
        return f"there is a graph of llama only, not of {config.get('model_type')!r}; write the native format"
    if config.get("hidden_act", "silu") != "silu":
        return f"its graph computes silu, not {config['hidden_act']!r}; write the native format"
    if (kind := rope(config)) not in ROPES:
        return f"rotary frequencies of the kind {kind!r} change with the length, which no graph holds; write the native format"
    if any(place.get("partial_rotary_factor", 1) != 1 for place in (config, config.get("rope_parameters") or {})):
        return "its graph turns whole heads, and this model a part of each; write the native format"
    if model.tied_head or "model.embed_tokens" in model.metas:
        return "its graph looks up embeddings as they were, and these are compressed; compress without --head"
    if lacking := sorted(reads(model) - set(model.kept) - {f"{name}.weight" for name in model.metas}):
        return f"the model lacks the tensor {lacking[0]}; download it again"
    return None


def reads(model: Model) -> set[str]:
    """Names of the tensors that the graph reads, coded ones as `<site>.weight`."""
    blocks = [f"model.layers.{i}" for i in range(configuration(model).num_hidden_layers)]
    linears = {f"{block}.{part}" for block in blocks for part in PARTS} | {head_of(model)}
    biases = {f"{name}.bias" for name in linears} & set(model.kept)
    norms = {f"{block}.{part}.weight" for block in blocks for part in ("input_layernorm", "post_attention_layernorm")}
    return {"model.embed_tokens.weight", "model.norm.weight", *(f"{name}.weight" for name in linears), *norms, *biases}


def configuration(model: Model) -> Any:
    """As transformers completes it."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**model.config)


def rope(config: Mapping[str, Json]) -> str:
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(found := config.get(key), dict):
            return str(found.get("rope_type") or found.get("type") or "default")
    return "default"


def head_of(model: Model) -> str:
    """The matrix that makes logits: the head's own, or the embedding's."""
    tied = model.config.get("tie_word_embeddings", False) or "lm_head.weight" not in model.kept
    return "model.embed_tokens" if tied and "lm_head" not in model.metas else "lm_head"


def logits(e: Emitter, model: Model, ids: Any) -> Any:
    """The whole model on token ids. Assumes that `refusal` is None."""
    config = configuration(model)
    one = e.constant(1, np.int64)
    length = e.apply("Gather", e.apply("Shape", ids), one, axis=0)
    places = e.apply("Range", e.constant(0, np.int64), length, one)
    turn = rotary(e, config, places)
    later = e.apply("Greater", places, e.apply("Unsqueeze", places, e.constant([1], np.int64)))
    mask = e.apply("Where", later, e.constant(np.finfo(np.float32).min, np.float32), e.constant(0.0, np.float32))
    hidden = e.rows("model.embed_tokens.weight", ids)
    for i in range(config.num_hidden_layers):
        name = f"model.layers.{i}"
        inner = norm(e, f"{name}.input_layernorm.weight", hidden, config.rms_norm_eps)
        hidden = e.apply("Add", hidden, attention(e, model, f"{name}.self_attn", inner, turn, mask, config))
        inner = norm(e, f"{name}.post_attention_layernorm.weight", hidden, config.rms_norm_eps)
        hidden = e.apply("Add", hidden, gated(e, model, f"{name}.mlp", inner))
    return e.product(head_of(model), norm(e, "model.norm.weight", hidden, config.rms_norm_eps))


def rotary(e: Emitter, config: Any, places: Any) -> tuple[Any, Any]:
    """Cosines and signed sines [sequence, head] of every place, with frequencies as transformers computes them.

    An angle f p is a product of hundreds with a small number, and engines that compute in bfloat16 would round p to 8 bits. So
    nothing is computed that needs more: the graph looks up p = 64 a + b in two short tables and adds the two angles.
    """
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    made = LlamaRotaryEmbedding(config)
    half = made.inv_freq.double().numpy()
    both, grown = np.concatenate([half, half]), float(made.attention_scaling)
    coarse = STEP * np.arange(-(-config.max_position_embeddings // STEP))[:, None] * both
    fine = np.arange(STEP)[:, None] * both
    step = e.constant(STEP, np.int64)
    above = e.apply("Div", places, step)
    below = e.apply("Sub", places, e.apply("Mul", above, step))

    def read(table: Any, at: Any) -> Any:
        return e.apply("Gather", e.constant(table, np.float32), at, axis=0)

    cos, sin = (read(grown * f(coarse), above) for f in (np.cos, np.sin))
    cos_below, sin_below = (read(f(fine), below) for f in (np.cos, np.sin))
    signs = np.repeat(np.array([-1.0, 1.0]), len(half))[None]  # of the halves that change places
    turned = e.apply("Add", e.apply("Mul", sin, cos_below), e.apply("Mul", cos, sin_below))
    return (
        e.apply("Sub", e.apply("Mul", cos, cos_below), e.apply("Mul", sin, sin_below)),
        e.apply("Mul", turned, e.constant(signs, np.float32)),
    )


def attention(e: Emitter, model: Model, name: str, x: Any, turn: tuple[Any, Any], mask: Any, config: Any) -> Any:
    """Query heads as [batch, kv heads, heads of a group, sequence, width]: keys and values broadcast over a group."""
    kv, width = config.num_key_value_heads, head_dim(config)
    group = config.num_attention_heads // kv

    def heads(part: str, count: int) -> Any:
        y = linear(e, model, f"{name}.{part}", x)
        y = e.apply("Reshape", y, e.constant([0, 0, kv, count, width], np.int64))
        return e.apply("Transpose", y, perm=(0, 2, 3, 1, 4))

    def turned(y: Any) -> Any:
        swap = e.constant(np.roll(np.arange(width), width // 2), np.int64)
        return e.apply("Add", e.apply("Mul", y, turn[0]), e.apply("Mul", e.apply("Gather", y, swap, axis=4), turn[1]))

    query, key, value = turned(heads("q_proj", group)), turned(heads("k_proj", 1)), heads("v_proj", 1)
    query = e.apply("Mul", query, e.constant(width**-0.5, np.float32))
    scores = e.apply("MatMul", query, e.apply("Transpose", key, perm=(0, 1, 2, 4, 3)))
    mixed = e.apply("MatMul", e.apply("Softmax", e.apply("Add", scores, mask), axis=4), value)
    flat = e.apply("Transpose", mixed, perm=(0, 3, 1, 2, 4))
    flat = e.apply("Reshape", flat, e.constant([0, 0, kv * group * width], np.int64))
    return linear(e, model, f"{name}.o_proj", flat)


def gated(e: Emitter, model: Model, name: str, x: Any) -> Any:
    gate = linear(e, model, f"{name}.gate_proj", x)
    gate = e.apply("Mul", gate, e.apply("Sigmoid", gate))
    return linear(e, model, f"{name}.down_proj", e.apply("Mul", gate, linear(e, model, f"{name}.up_proj", x)))


def norm(e: Emitter, name: str, x: Any, eps: float) -> Any:
    mean = e.apply("ReduceMean", e.apply("Mul", x, x), e.constant([-1], np.int64), keepdims=1)
    root = e.apply("Sqrt", e.apply("Add", mean, e.constant(eps, np.float32)))
    return e.apply("Mul", e.apply("Div", x, root), e.kept(name))


def linear(e: Emitter, model: Model, name: str, x: Any) -> Any:
    y = e.product(name, x)
    return e.apply("Add", y, e.kept(f"{name}.bias")) if f"{name}.bias" in model.kept else y


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
