"""Llama: pre-norm decoder, rotary attention with grouped key/value heads, gated MLP. Also the shape of many later families."""

from typing import Any

from bitwright.wiring import Flow, Wiring


def wiring(config: Any) -> Wiring:
    """From a transformers LlamaConfig."""
    layers = range(config.num_hidden_layers)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    block = "model.layers.{}".format
    into = [f"{block(i)}.{part}" for i in layers for part in READERS_OF_RESIDUAL]
    flows = [
        Flow(
            "residual",
            config.hidden_size,
            writers=("model.embed_tokens", *(f"{block(i)}.{part}" for i in layers for part in WRITERS_OF_RESIDUAL)),
            readers=(*into, "lm_head"),
            allows=frozenset({"permutation", "orthogonal"}),
            norms=(*(f"{block(i)}.{norm}" for i in layers for norm in NORMS), "model.norm"),
        )
    ]
    for i in layers:
        attn, mlp = f"{block(i)}.self_attn", f"{block(i)}.mlp"
        flows += [
            Flow(
                f"{attn}.value",
                config.num_key_value_heads * head_dim,
                (f"{attn}.v_proj",),
                (f"{attn}.o_proj",),  # reads each value head once for every query head of its group
                frozenset({"permutation", "diagonal", "orthogonal", "invertible"}),
                heads=config.num_key_value_heads,
            ),
            Flow(
                f"{mlp}.inner",
                config.intermediate_size,
                (f"{mlp}.up_proj",),  # a permutation must also reach gate_proj, the other factor of the product
                (f"{mlp}.down_proj",),
                frozenset({"diagonal"}),
            ),
        ]
    return Wiring(
        blocks="model.layers",
        embed=("model.embed_tokens", "model.rotary_emb"),
        norm=("model.norm",),
        head="lm_head",
        flows=tuple(flows),
        fused=FUSED,
    )


FUSED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
NORMS = ("input_layernorm", "post_attention_layernorm")
READERS_OF_RESIDUAL = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
WRITERS_OF_RESIDUAL = ("self_attn.o_proj", "mlp.down_proj")
