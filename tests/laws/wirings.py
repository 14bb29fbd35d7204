"""Wirings: every name is a module, walking the parts is the model, and what a flow allows does not change the function."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright import index
from bitwright.calibrate.stream import embed, run
from bitwright.checkpoint import auto_class, takes_images
from bitwright.sites import Site
from bitwright.wiring import Flow, Wiring

TINY: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    | {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "vit": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 8}
    | {"patch_size": 4},
    "bitwright_resnet": {"width": 4, "depth": 1, "image_size": 8},
}
DRAWN: dict[str, Callable[[int], Tensor]] = {  # a matrix that multiplies features, of each kind
    "permutation": lambda d: torch.eye(d)[torch.randperm(d)],
    "diagonal": lambda d: torch.diag(0.5 + torch.rand(d)),
    "orthogonal": lambda d: torch.linalg.qr(torch.randn(d, d))[0],
    "invertible": lambda d: torch.eye(d) + 0.3 * torch.randn(d, d) / d**0.5,
}
families = pytest.mark.parametrize("family", index.WIRINGS)


def made(family: str) -> tuple[Any, Wiring, Tensor]:
    """A random model of a family, its wiring, inputs."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, **TINY[family])
    model = auto_class(config).from_config(config).eval()
    for name, p in model.named_parameters():  # as initialised, blocks and biases hardly matter
        p.data = p.data + 0.1 * torch.rand_like(p) if p.dim() == 1 else 3 * p.data if "layers" in name else p.data
    inputs = torch.randn(3, 3, 8, 8) if takes_images(config) else torch.randint(0, config.vocab_size, (3, 7))
    return model, index.load(index.WIRINGS[family])(config), inputs


@families
@torch.no_grad()
def test_walking_the_parts_is_the_model(family: str) -> None:
    model, wiring, inputs = made(family)
    blocks = wiring.block_list(model)
    rows = embed(model.base_model, blocks, inputs, 2, False, wiring.call)
    for i, block in enumerate(blocks):
        for r in rows:
            r.hidden = run(block, r.hidden, r.calls[i])
    head = model.get_submodule(wiring.head)
    logits = torch.cat([head(wiring.states(model, r.hidden)) for r in rows])
    assert torch.allclose(logits, model(inputs).logits, atol=1e-5)


@families
def test_every_name_is_a_module(family: str) -> None:
    model, wiring, _ = made(family)
    first = f"{wiring.blocks}.0"
    named = [*wiring.embed, *wiring.norm, wiring.head, *(f"{first}.{name}" for part in wiring.fused for name in part)]
    named += [name for flow in wiring.flows for name in (*flow.writers, *flow.readers, *flow.norms)]
    for name in named:
        model.get_submodule(name)


def changed(model: Any, flow: Flow, M: Tensor) -> None:
    """Multiply M [heads, d, d] in where the flow is written, and its inverse where it is read."""
    heads, d, _ = M.shape
    for name in flow.writers:
        site = site_of(model, name)
        site.put((M @ site.matrix().view(heads, d, -1)).view(site.shape))
        if getattr(site.module, "bias", None) is not None:
            site.module.bias.copy_((M @ site.module.bias.view(heads, d, 1)).flatten())
    for name in flow.readers:
        site = site_of(model, name)
        out, inp = site.shape
        places = 1 if site.patches is None else torch.Size(site.patches.kernel).numel()
        columns = site.matrix().view(out, heads, inp // heads // d // places, d, places)  # a head may be read several times
        site.put(torch.einsum("ohrdp,hde->ohrep", columns, torch.linalg.inv(M)).reshape(out, inp))


def site_of(model: Any, name: str) -> Site:
    found = Site.of(name, model.get_submodule(name))
    assert found is not None
    return found


@families
@torch.no_grad()
def test_what_a_flow_allows_does_not_change_the_function(family: str) -> None:
    model, wiring, inputs = made(family)
    before = model(inputs).logits
    for flow in wiring.flows:
        if flow.norms:  # their weights must be folded first
            continue
        for kind in sorted(flow.allows):
            M = torch.stack([DRAWN[kind](flow.width // flow.heads) for _ in range(flow.heads)])
            changed(model, flow, M)
            after = model(inputs).logits
            assert torch.allclose(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max())), (flow.name, kind)


@families
@torch.no_grad()
def test_what_a_flow_does_not_allow_is_not_allowed_for_a_reason(family: str) -> None:
    """Inside a nonlinearity a rotation changes the function; a flow that allowed it would be a mistake the law above finds."""
    model, wiring, inputs = made(family)
    flow = next(f for f in wiring.flows if "orthogonal" not in f.allows)
    before = model(inputs).logits
    changed(model, flow, DRAWN["orthogonal"](flow.width)[None])
    assert not torch.allclose(model(inputs).logits, before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
