"""The residual network of bitwright/zoo/resnet.py: blocks of two convs and a way around them, the mean of all places, a linear."""

from typing import Any

from bitwright.wiring import Flow, Wiring


def wiring(config: Any) -> Wiring:
    """From a ResNetConfig. Inside a block, channels may be permuted, and scaled by positive numbers: a ReLU lets both through.
    The sum of a stage is no flow: blocks add to it through a ReLU that only its next readers see."""
    flows = [
        Flow(
            f"resnet.blocks.{i}.inner",
            config.width << stage,
            (f"resnet.blocks.{i}.conv1",),
            (f"resnet.blocks.{i}.conv2",),
            frozenset({"permutation", "diagonal"}),
        )
        for stage in range(3)
        for i in range(stage * config.depth, (stage + 1) * config.depth)
    ]
    return Wiring(
        blocks="resnet.blocks",
        embed=("resnet.stem",),
        norm=("resnet.pool",),
        head="classifier",
        flows=tuple(flows),
        fused=(),
        call={},
    )
