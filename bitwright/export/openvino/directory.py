"""OpenVINO: a Llama as `openvino_model.xml` and `.bin`, the names that its own tools look for.

The graph is built with OpenVINO's operators and not converted from our ONNX: that keeps every constant in the type and under the
name that it is stored with, so the file is as small as the ledger says and reads back to terms, and no importer stands between.
Integers of 4 and 8 bits and FP8; codes of 2 bits take 4, since the CPU plugin of 2026.4 fails on u2 where it rounds inputs to 8
bits. That rounding is the engine's default and the file asks for none (DYNAMIC_QUANTIZATION_GROUP_SIZE 0; who sets another gets
it). Where the processor has bfloat16 the engine computes in it, until INFERENCE_PRECISION_HINT is f32; the file cannot ask for
that. Equal constants share their bytes in the .bin, which OpenVINO sees to; the ledger counts each of them. Beyond the longest row
OpenVINO reads zeros without a word. No cache of keys and values yet: see graph/llama.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.activations.base import Activation
from bitwright.errors import BadRequest, writing
from bitwright.export.base import Kept, Metas, Model, Opened
from bitwright.export.graph import document, llama
from bitwright.export.graph.libraries import lacking, library
from bitwright.export.openvino.emitter import TYPES, OpenvinoEmitter
from bitwright.progress import Progress

FILE, DATA = "openvino_model.xml", "openvino_model.bin"


@dataclass(frozen=True)
class Openvino:
    """The format `openvino`."""

    def refusal(self, model: Model) -> str | None:
        if why := lacking("openvino"):
            return why
        if spare := sorted(set(model.kept) - llama.reads(model)) if llama.refusal(model) is None else []:
            return f"OpenVINO's file holds what its graph reads, and it does not read {spare[0]}; leave it out of the checkpoint."
        return document.refusal(model, "openvino", "OpenVINO")

    def remarks(self, model: Model) -> list[str]:
        return [
            *document.limits(model, "OpenVINO"),
            "OpenVINO computes in bfloat16 where the processor has it, unless INFERENCE_PRECISION_HINT is f32",
            *document.widened(document.matrices(model, "openvino")),
        ]

    def bits(self, name: str, metas: Metas, inputs: Activation | None = None) -> int:
        return document.bits(name, metas, "openvino", "OpenVINO")

    def kept_bytes(self, name: str, kept: Kept) -> int:
        return document.bytes_of(kept)

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        ov, model = library("openvino"), source.model
        e = OpenvinoEmitter(source, document.matrices(model, "openvino"))
        ids = e.op.parameter([-1, -1], ov.Type.i64, name="input_ids")
        ids.output(0).set_names({"input_ids"})
        result = e.op.result(llama.logits(e, model, ids))
        result.output(0).set_names({"logits"})
        made = ov.Model([result], [ids], "llama")
        made.set_rt_info(document.text(model, "openvino"), [document.KEY])
        made.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        progress("writing", len(model.metas), len(model.metas))
        with writing(out):
            ov.save_model(made, out / f"partial.{FILE}", compress_to_fp16=False)
            for name in (DATA, FILE):  # the graph last: without it there is no model
                (out / f"partial.{name}").replace(out / name)
            document.beside(out, source)

    def recognises(self, root: Path) -> bool:
        """A file, or a directory that has one and no weights of its own beside it."""
        return root.suffix == ".xml" if root.is_file() else (root / FILE).is_file() and not list(root.glob("*.safetensors"))

    def open(self, root: Path) -> Opened:
        ov, path = library("openvino"), root if root.is_file() else root / FILE
        try:
            model = ov.Core().read_model(path)
            told = model.get_rt_info([document.KEY]).astype(str) if model.has_rt_info([document.KEY]) else None
            found = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
        except Exception as error:  # of the library, whatever is wrong
            raise BadRequest(f"{path} or its .bin is truncated or damaged ({type(error).__name__}); export it again.") from None
        if told is None:
            raise BadRequest(
                f"{path} was not written by bitwright, and other graphs are not read; give the model it was made from."
            )
        kinds = {getattr(ov.Type, theirs): ours for ours, theirs in TYPES.items()}
        return document.opened(told, {name: stored(op, kinds) for name, op in found.items()}, path)


def stored(op: Any, kinds: dict[Any, str]) -> document.Stored:
    shape = tuple(op.get_output_shape(0))
    return document.Stored(kinds.get(op.get_element_type(), "another type"), shape, op.get_byte_size(), lambda: op.data.tobytes())
