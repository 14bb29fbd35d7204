"""Loading: the bridge to transformers, so that `AutoModelForCausalLM.from_pretrained(dir)` works after `import bitwright`.

Imported when transformers' own table of quantizers is (bitwright/__init__.py arranges that), never before.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitwright.checkpoint import auto_class, locate, skeleton
from bitwright.coded import install
from bitwright.export import native
from bitwright.export.base import Opened, format_of, reading
from bitwright.export.native import METHOD, Native, site_inputs, site_metas
from bitwright.narrow import open_as


@register_quantization_config(METHOD)
class BitwrightConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json (docs/format.md)."""

    def __init__(self, **fields: Any):
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers' own plugins use strings too
        self.fields = {k: v for k, v in fields.items() if k != "quant_method"}

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, **self.fields}


@register_quantizer(METHOD)
class BitwrightQuantizer(HfQuantizer):
    """Puts coded modules in place before the weights are read. Buffers keep their stored types."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        fields: Any = self.quantization_config.fields  # type: ignore[attr-defined]
        return install(model, site_metas(fields), fields["tied_head"], site_inputs(fields))

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def load(directory: str | Path, dtype: torch.dtype = torch.float32, size: int | str | None = None, bits: int | None = None) -> Any:
    """A model directory, hub id or `zoo:lm`, plain or compressed by any tool whose format is known, as a transformers model in
    evaluation mode, on the CPU. Compressed matrices stay as they are stored and run on bitwright's kernels. `size`: of a stack (the
    recipe bitstack makes one) only what fits into so many bytes, or "9MB", with all that is kept; nothing else of it is read.
    `bits`: of a model that serves several widths, the one to load; it holds the codes of that width alone.

    Raises BadRequest where there is none, or where it cannot be so small."""
    root = locate(str(directory))
    form = format_of(root)
    if size is None and bits is None and (form is None or isinstance(form, Native)):
        from transformers import AutoConfig

        return auto_class(AutoConfig.from_pretrained(root)).from_pretrained(root, dtype=dtype).eval()
    return assembled(root, open_as(root, size, bits, form)).to(dtype)


def assembled(root: Path, opened: Opened) -> Any:
    """The model of an opened directory, fp32."""
    from transformers import AutoConfig

    sites = opened.model.metas
    tensors = native.flatten({name: opened.terms(name) for name in sites}, {name: opened.scales(name) for name in sites})
    tensors |= {name: opened.tensor(name) for name in opened.model.kept}
    with reading(root):
        config = AutoConfig.for_model(**opened.model.config)
    return assemble(config, tensors, native.fields(opened.model))


def assemble(config: Any, tensors: dict[str, Tensor], fields: dict[str, Any]) -> nn.Module:
    """The model of tensors that never were on disk: the same modules, filled from memory, fp32."""
    config = copy.deepcopy(config)
    if fields["tied_head"]:
        config.tie_word_embeddings = False  # tied through the terms then, not through a float weight
    model = install(skeleton(config), site_metas(fields), fields["tied_head"], site_inputs(fields))
    floats = {n: t if ".terms." in n or ".inputs." in n or not t.is_floating_point() else t.float() for n, t in tensors.items()}
    missing, unexpected = model.load_state_dict(floats, strict=False, assign=True)
    model.tie_weights()  # type: ignore[operator]
    spare = [name for name in unexpected if ".terms." in name or ".inputs." in name]  # others are left by, as transformers does
    if spare or any(p.is_meta for p in model.parameters()):
        raise ValueError(f"the tensors do not fit the model: missing {missing[:3]}, unexpected {spare[:3]}")
    return model
