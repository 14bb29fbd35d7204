"""A residual network for small images (He et al., 2015, section 4.2) as it is shipped: batch norms already folded into the convs.

    block:  y = relu(conv2(relu(conv1(x))) + s(x)),    s a 1 x 1 conv where shape changes, nothing elsewhere

Three stages of `depth` blocks, 3 x 3 convs, the width doubling and the side halving between them; depth 3 makes ResNet-20.
Differs from the paper: the shortcut between stages is a conv (its option B), so that convs of two kinds read one tensor.
The blocks stand in one list, which is what a walk block by block needs.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from bitwright.zoo.resnet_config import ResNetConfig


class Block(nn.Module):
    """Two convs and a way around them: [n, inp, h, w] to [n, out, h / stride, w / stride]."""

    def __init__(self, inp: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if inp == out else nn.Conv2d(inp, out, 1, stride)

    def forward(self, x: Float[Tensor, "n inp h w"]) -> Float[Tensor, "n out h2 w2"]:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class Stem(nn.Module):
    """The first conv: [n, channels, h, w] to [n, width, h, w]."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n width h w"]:
        return F.relu(self.conv(x))


class Pool(nn.Module):
    """The mean over all places: [n, width, h, w] to [n, width]."""

    def forward(self, x: Float[Tensor, "n width h w"]) -> Float[Tensor, "n width"]:
        return x.mean((2, 3))


class ResNetPreTrained(PreTrainedModel):
    config_class = ResNetConfig
    base_model_prefix = "resnet"
    main_input_name = "pixel_values"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class ResNet(ResNetPreTrained):
    """Images to one vector each."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.stem = Stem(config.num_channels, config.width)
        widths = [config.width << stage for stage in range(3) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(
            Block(inp, out, 1 if inp == out else 2) for inp, out in zip([config.width, *widths[:-1]], widths, strict=True)
        )
        self.pool = Pool()
        self.post_init()

    def forward(self, pixel_values: Float[Tensor, "n channels h w"], **kwargs: Any) -> BaseModelOutputWithPooling:
        x = self.stem(pixel_values)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.pool(x))  # type: ignore[arg-type]


class ResNetForImageClassification(ResNetPreTrained):
    """Images [n, channels, h, w] to logits [n, classes]."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.resnet = ResNet(config)
        self.classifier = nn.Linear(4 * config.width, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Float[Tensor, "n channels h w"], labels: Tensor | None = None, **kwargs: Any) -> Any:
        logits = self.classifier(self.resnet(pixel_values).pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)  # type: ignore[arg-type]


AutoModel.register(ResNetConfig, ResNet, exist_ok=True)
AutoModelForImageClassification.register(ResNetConfig, ResNetForImageClassification, exist_ok=True)
