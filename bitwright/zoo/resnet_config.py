"""The configuration of resnet.py, apart from it: transformers knows configurations before it can know models."""

from typing import Any

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig


class ResNetConfig(PretrainedConfig):
    """`width`: channels of the first stage; `depth`: blocks per stage."""

    model_type = "bitwright_resnet"

    def __init__(self, width: int = 16, depth: int = 3, image_size: int = 32, num_channels: int = 3, **kwargs: Any):
        self.width, self.depth, self.image_size, self.num_channels = width, depth, image_size, num_channels
        super().__init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        return 3 * self.depth


AutoConfig.register("bitwright_resnet", ResNetConfig, exist_ok=True)
