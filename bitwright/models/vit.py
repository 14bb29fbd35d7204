"""ViT: patches as tokens, pre-norm encoder, plain attention, MLP with GELU; the class is read off the first token."""

from typing import Any

from torch import Tensor

from bitwright.wiring import Flow, Wiring


def wiring(config: Any) -> Wiring:
    """From a transformers ViTConfig. The residual stream is no flow: class token and positions, which no module holds, write it."""
    flows = []
    for i in range(config.num_hidden_layers):
        block = f"vit.layers.{i}"
        flows += [
            Flow(
                f"{block}.attention.value",
                config.hidden_size,
                (f"{block}.attention.v_proj",),
                (f"{block}.attention.o_proj",),
                frozenset({"permutation", "diagonal", "orthogonal", "invertible"}),
                heads=config.num_attention_heads,
            ),
            Flow(
                f"{block}.mlp.inner",
                config.intermediate_size,
                (f"{block}.mlp.fc1",),
                (f"{block}.mlp.fc2",),
                frozenset({"permutation"}),
            ),
        ]
    return Wiring(
        blocks="vit.layers",
        embed=("vit.embeddings",),
        norm=("vit.layernorm",),
        head="classifier",
        flows=tuple(flows),
        fused=(("attention.q_proj", "attention.k_proj", "attention.v_proj"),),
        call={},
        picked=first_token,
        renamed=OLD_NAMES,
    )


def first_token(states: Tensor) -> Tensor:
    return states[:, 0]


OLD_NAMES = (  # as checkpoints have them since before transformers 5
    (r"^vit\.encoder\.layer\.", "vit.layers."),
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
