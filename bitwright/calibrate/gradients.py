"""Gradients of the float model at every site, in one walk forward and one walk back, with one block in memory at a time.

    fisher            [out, inp]   E over rows of (sum_t g_t x_t^T)^2 / T    of every weight
    output-gradient   [out]        E over tokens of g_t^2                    of every output

g_t is the gradient of -sum log p(y) at the output of the site, x_t its input, y drawn by the model itself at every token: then
both are diagonals of the Fisher matrix, that is, of the Hessian of KL(float || compressed) at zero error, per token; with the
text's own tokens they would not be. 1/2 sum F e^2 is the KL that errors e cause, where they are small and independent.

The states before every block are kept (tokens x width x blocks numbers); the walk back runs each block once more with gradients.
Cost: two forward passes and one backward. Sources: Martens and Grosse, 2015; cards squeezellm, cvxq (which projects the last
hidden states on their principal components instead of drawing tokens: the same matrix up to the metric of the output).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.calibrate.base import Data
from bitwright.calibrate.stream import embed, run
from bitwright.checkpoint import Checkpoint, fill, skeleton
from bitwright.progress import Progress
from bitwright.sites import Site, sites
from bitwright.wiring import Wiring

FISHER, OUTPUT = "fisher", "output-gradient"
GRADIENTS = (FISHER, OUTPUT)  # statistics of a site by itself; all others are of an input that sites share


def gradients(
    source: Checkpoint, wiring: Wiring, data: Data, device: torch.device, progress: Progress, seed: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(site, its statistics) of every site inside the blocks, from the last block to the first."""
    model: Any = skeleton(source.config)
    blocks = wiring.block_list(model)
    for name in (*wiring.embed, *wiring.norm):
        fill(model.get_submodule(name), source, name)
    stream = [r.to(device) for r in embed(model.base_model, blocks, data.inputs, 1, False, wiring.call)]
    before: list[list[Tensor]] = []  # by block, then by row
    for i, block in enumerate(blocks):
        progress("walking forward", i, len(blocks))
        fill(block, source, f"{wiring.blocks}.{i}", device)
        before.append([r.hidden for r in stream])
        with torch.no_grad():
            for r in stream:
                r.hidden = run(block, r.hidden, r.calls[i])
        block.to("meta")
    head = head_of(source, wiring).to(device)
    back = [of_drawn(lambda h: wiring.states(model, h), head, r.hidden, seed + k) for k, r in enumerate(stream)]
    for i in range(len(blocks) - 1, -1, -1):
        progress("walking back", len(blocks) - 1 - i, len(blocks))
        block, prefix = blocks[i], f"{wiring.blocks}.{i}."
        fill(block, source, prefix[:-1], device)
        block.requires_grad_(False)
        here = sites(block, prefix)
        sums = {n: [torch.zeros(s.shape, device=device), torch.zeros(s.shape[0], device=device)] for n, s in here.items()}
        for k, r in enumerate(stream):
            handles = [site.module.register_forward_hook(tapped(site, sums[name])) for name, site in here.items()]
            start = before[i][k].detach().requires_grad_()
            with torch.enable_grad():
                out = run(block, start, r.calls[i])
            for handle in handles:
                handle.remove()
            (back[k],) = torch.autograd.grad(out, start, back[k])
        tokens = data.answers
        for name, (square, output) in sums.items():
            yield name, {FISHER: square.cpu() / tokens, OUTPUT: output.cpu() / tokens}
        block.to("meta")
    progress("walking back", len(blocks), len(blocks))


def tapped(site: Site, sums: list[Tensor]) -> Any:
    """A hook that adds a row's squares to `sums` when its gradient comes back."""

    def forward(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        x = site.tokens(args[0].detach())

        def backward(grad: Tensor) -> None:
            g = site.outputs(grad)
            sums[0].add_((g.T @ x).square_())
            sums[1].add_(g.square().sum(0))

        out.register_hook(backward)

    return forward


def head_of(source: Checkpoint, wiring: Wiring) -> nn.Linear:
    """The output head, fp32: its own weight, or the embedding's where they are tied."""
    name = f"{wiring.head}.weight"
    weight = source.tensor(name if name in source.shapes else f"{wiring.embed[0]}.weight").float()
    bias = source.tensor(f"{wiring.head}.bias").float() if f"{wiring.head}.bias" in source.shapes else None
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    head.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias}, assign=True)
    return head.requires_grad_(False)


def of_drawn(states_of: Callable[[Tensor], Tensor], head: nn.Linear, hidden: Tensor, seed: int) -> Tensor:
    """The gradient of -sum log p(y) at the last hidden states, y drawn from p at every token, or for every image."""
    start = hidden.detach().requires_grad_()
    with torch.enable_grad():
        states = states_of(start)
    with torch.no_grad():
        p = torch.softmax(head(states).float(), -1)
        drawn = torch.multinomial(p.flatten(0, -2).cpu(), 1, generator=torch.Generator().manual_seed(seed)).to(p.device)
        p.view(-1, p.shape[-1]).scatter_add_(1, drawn, -torch.ones_like(drawn, dtype=p.dtype))
    (grad,) = torch.autograd.grad(states, start, p @ head.weight)
    return grad
