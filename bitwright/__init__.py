"""bitwright: fewer stored bits, the same behaviour, a report that does not flatter.

    import bitwright
    model, report = bitwright.compress("zoo:lm", bitwright.recipes.best(bits=3), bitwright.calibration("zoo:lm"))

Public names are resolved when first used, so that importing the package costs nothing. After the import, transformers loads
compressed directories and the zoo by itself: all that happens here is a note to be told when its tables are loaded.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, ClassVar

__version__ = "0.1.0"

_PUBLIC = {
    "BadRequest": "bitwright.errors:BadRequest",
    "BrokenPromise": "bitwright.errors:BrokenPromise",
    "Codec": "bitwright.embed.codec:Codec",
    "Index": "bitwright.embed.index:Index",
    "Layout": "bitwright.layout:Layout",
    "Recipe": "bitwright.recipe:Recipe",
    "Report": "bitwright.report:Report",
    "Rule": "bitwright.recipe:Rule",
    "calibration": "bitwright.calibrate.drawn:calibration",
    "codecs": "bitwright.embed.codecs",
    "compress": "bitwright.job:compress",
    "evaluate": "bitwright.evaluation:evaluate",
    "load": "bitwright.loading:load",
    "recipes": "bitwright.recipes",
    "windows": "bitwright.calibrate.data:windows",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bitwright' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


class _TellWhenLoaded(MetaPathFinder):
    """Registers what is ours right after transformers has loaded the table it belongs into."""

    after: ClassVar[dict[str, str]] = {
        "transformers.quantizers.auto": "bitwright.loading",
        "transformers.models.auto.configuration_auto": "bitwright.zoo.resnet_config",
        "transformers.models.auto.modeling_auto": "bitwright.zoo.resnet",
    }

    def __init__(self) -> None:
        self.waiting = dict(self.after)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        ours = self.waiting.pop(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                importlib.import_module(ours)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if not any(type(finder).__name__ == "_TellWhenLoaded" for finder in sys.meta_path):
    for _loaded, _ours in _TellWhenLoaded.after.items():
        if _loaded in sys.modules:
            importlib.import_module(_ours)
    sys.meta_path.insert(0, _TellWhenLoaded())
