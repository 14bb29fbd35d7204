"""Emitter: operators and initializers of an ONNX graph, opset 21 and onnxruntime's MatMulNBits.

Stored tensors are initializers in their own type, cast to fp32 by the graph: onnxruntime folds these casts once, when it loads the
file. What the graph itself needs are Constant nodes, so that initializers are the ledger and nothing else.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bitwright.export.base import Opened
from bitwright.export.graph.libraries import library
from bitwright.export.graph.matrix import Matrix, raw, store

OPSET, IR = 21, 10
NAMES = {
    "float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "float64": "DOUBLE", "int64": "INT64", "int32": "INT32",
    "int16": "INT16", "int8": "INT8", "uint8": "UINT8", "int4": "INT4", "uint4": "UINT4", "float8_e4m3fn": "FLOAT8E4M3FN",
}  # fmt: skip


class OnnxEmitter:
    """Nodes and initializers as they come. `accuracy` is MatMulNBits' level: 1 computes in fp32, 4 with 8-bit inputs."""

    def __init__(self, source: Opened, matrices: Mapping[str, Matrix], accuracy: int):
        self.onnx = library("onnx")
        self.source, self.matrices, self.accuracy = source, matrices, accuracy
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.made: dict[Any, str] = {}  # what is emitted once and read many times

    def node(self, op: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        out = f"{op}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [out], name=out, domain=domain, **attributes))
        return out

    def constant(self, values: Any, kind: type) -> str:
        array: Any = np.asarray(values, dtype=kind)
        key = array.dtype, array.shape, array.tobytes()
        if key not in self.made:
            self.made[key] = self.node("Constant", [], value=self.onnx.numpy_helper.from_array(array))
        return self.made[key]

    def store(self, name: str, kind: str, shape: tuple[int, ...], data: bytes) -> str:
        of = getattr(self.onnx.TensorProto, NAMES[kind])
        self.initializers[name] = self.onnx.helper.make_tensor(name, of, shape, data, raw=True)
        return name

    def stored(self, name: str) -> str:
        """A kept tensor as it is."""
        if name not in self.initializers:
            shape, dtype = self.source.model.kept[name]
            self.store(name, str(dtype).removeprefix("torch."), shape, raw(self.source.tensor(name)))
        return name

    def kept(self, name: str) -> str:
        return self.fp32(self.stored(name))

    def fp32(self, name: str) -> str:
        """An initializer cast to fp32, once."""
        if name not in self.made:
            self.made[name] = self.cast(name, name)
        return self.made[name]

    def rows(self, name: str, ids: str) -> str:
        return self.cast(name, self.node("Gather", [self.stored(name), ids], axis=0))

    def cast(self, name: str, x: str) -> str:
        """fp32 of a value that has the type of an initializer."""
        fp32 = self.onnx.TensorProto.FLOAT
        return x if self.initializers[name].data_type == fp32 else self.node("Cast", [x], to=fp32)

    def product(self, name: str, x: str) -> str:
        if name not in self.matrices:
            return self.node("MatMul", [x, self.node("Transpose", [self.kept(f"{name}.weight")], perm=[1, 0])])
        m, (term,) = self.matrices[name], self.source.terms(name)
        data = store(term, m)  # type: ignore[arg-type]
        parts = {leaf: self.store(f"{name}.{leaf}", kind, shape, data[leaf]) for leaf, (kind, shape) in m.spec().items()}
        scale = self.fp32(parts["scale"])
        zero = [parts["zero"]] if "zero" in parts else []
        if m.style == "matmulnbits":
            told: dict[str, Any] = {"K": m.inp, "N": m.out, "bits": m.bits, "block_size": m.group, "accuracy_level": self.accuracy}
            return self.node("MatMulNBits", [x, parts["codes"], scale, *zero], "com.microsoft", **told)
        layout: dict[str, Any] = {"axis": 0, "block_size": m.group} if m.across > 1 else {"axis": 1} if m.down > 1 else {}
        return self.node("MatMul", [x, self.node("DequantizeLinear", [parts["codes"], scale, *zero], **layout)])

    def apply(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.node(op, list(inputs), **attributes)
