"""ONNX: a Llama as one file `model.onnx`, graph and weights together, for onnxruntime (opset 21, IR 10).

`matmulnbits` gives integers of 2, 4 and 8 bits in groups of 16 to 256 to onnxruntime's own operator, at the accuracy level whose
arithmetic is fp32; what that operator cannot take is dequantized by the standard operator. `qdq` does so with every matrix, which
other engines read too: there codes of 2 bits take 4. onnxruntime joins dequantization and product into that same operator when it
loads the file, then with 8-bit inputs unless it is told otherwise. Above 1.5 GB the weights lie in a second file, as protobuf ends
at 2 GB. The model is held in memory while it is written. No cache of keys and values yet: see graph/llama.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitwright.activations.base import Activation
from bitwright.errors import BadRequest, writing
from bitwright.export.base import Kept, Metas, Model, Opened, bytes_of
from bitwright.export.graph import document, llama
from bitwright.export.graph.libraries import lacking, library
from bitwright.export.onnx.emitter import IR, NAMES, OPSET, OnnxEmitter
from bitwright.progress import Progress

FILE, DATA = "model.onnx", "model.onnx.data"
APART = 1_500_000_000  # bytes from which on the weights have a file of their own


@dataclass(frozen=True)
class Onnx:
    """The format `onnx`. `accuracy`: 1 computes in fp32, 4 rounds inputs to 8 bits, which is faster and not what was judged;
    with 4, onnxruntime 1.32 is only right while its graph optimization is on."""

    style: Literal["matmulnbits", "qdq"] = "matmulnbits"
    accuracy: Literal[1, 4] = 1

    def refusal(self, model: Model) -> str | None:
        return lacking("onnx") or document.refusal(model, self.style, "ONNX")

    def remarks(self, model: Model) -> list[str]:
        found = document.limits(model, "ONNX")
        matrices = document.matrices(model, self.style)
        if any(m.style == "qdq" and m.kind != "float8" for m in matrices.values()):
            found.append(
                "onnxruntime rounds the inputs of dequantized matrices to 8 bits unless the session option "
                "session.qdq_matmulnbits_accuracy_level is 1"
            )
        return found + document.widened(matrices)

    def bits(self, name: str, metas: Metas, inputs: Activation | None = None) -> int:
        return document.bits(name, metas, self.style, "ONNX")

    def kept_bytes(self, name: str, kept: Kept) -> int:
        return document.bytes_of(kept)

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        onnx, model = library("onnx"), source.model
        e = OnnxEmitter(source, document.matrices(model, self.style), self.accuracy)
        helper, of = onnx.helper, onnx.TensorProto
        named = llama.logits(e, model, "input_ids")
        e.nodes.append(helper.make_node("Identity", [named], ["logits"]))
        for name in model.kept:  # also what the graph does not read: nothing is lost on the way
            e.stored(name)
        words, batch = model.kept["model.embed_tokens.weight"][0][0], ["batch", "sequence"]
        ids = helper.make_tensor_value_info("input_ids", of.INT64, batch)
        logits = helper.make_tensor_value_info("logits", of.FLOAT, [*batch, words])
        graph = helper.make_graph(e.nodes, "llama", [ids], [logits], list(e.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="bitwright")
        helper.set_model_props(proto, {document.KEY: document.text(model, self.style)})
        progress("writing", len(model.metas), len(model.metas))
        save(onnx, proto, source, out, bytes_of(self, model) > APART)

    def recognises(self, root: Path) -> bool:
        """A file, or a directory that has one and no weights of its own beside it."""
        return root.suffix == ".onnx" if root.is_file() else (root / FILE).is_file() and not list(root.glob("*.safetensors"))

    def open(self, root: Path) -> Opened:
        onnx, path = library("onnx"), root if root.is_file() else root / FILE
        try:
            proto = onnx.load(path)
            found = {p.key: p.value for p in proto.metadata_props}
        except Exception as error:  # of protobuf, of the checker, of the disk
            raise BadRequest(f"{path} is truncated or damaged ({type(error).__name__}); export it again.") from None
        if document.KEY not in found:
            raise BadRequest(
                f"{path} was not written by bitwright, and other graphs are not read; give the model it was made from."
            )
        kinds = {getattr(onnx.TensorProto, named): kind for kind, named in NAMES.items()}
        tensors = {t.name: stored(t, kinds) for t in proto.graph.initializer}
        return document.opened(found[document.KEY], tensors, path)


def stored(proto: Any, kinds: dict[int, str]) -> document.Stored:
    return document.Stored(
        kinds.get(proto.data_type, "another type"), tuple(proto.dims), len(proto.raw_data), lambda: proto.raw_data
    )


def save(onnx: Any, proto: Any, source: Opened, out: Path, apart: bool) -> None:
    """The file under another name until it is complete; then what belongs beside it."""
    partial = out / f".{FILE}.partial"
    try:
        with writing(out):
            (out / DATA).unlink(missing_ok=True)  # the library appends to what is there
            onnx.save_model(proto, partial, save_as_external_data=apart, location=DATA)
            partial.replace(out / FILE)
            document.beside(out, source)
    finally:
        partial.unlink(missing_ok=True)


def OnnxQdq() -> Onnx:
    """The format `onnx-qdq`: standard operators only, as any engine of opset 21 can run."""
    return Onnx("qdq")
