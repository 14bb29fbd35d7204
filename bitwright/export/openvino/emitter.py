"""Emitter: operators and constants of an OpenVINO model.

A coded matrix is Convert, Subtract, Multiply, Reshape on its codes: the pattern that plugins recognise as a compressed weight and
never expand. Stored tensors are constants that bear their own names; those of the graph itself have none of ours.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bitwright.export.base import Opened
from bitwright.export.graph.libraries import library
from bitwright.export.graph.matrix import Matrix, raw, store

TYPES = {  # ours -> OpenVINO's
    "float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64", "int64": "i64", "int32": "i32", "int16": "i16",
    "int8": "i8", "uint8": "u8", "int4": "i4", "uint4": "u4", "float8_e4m3fn": "f8e4m3",
}  # fmt: skip


class OpenvinoEmitter:
    """Nodes as they come; operators by ONNX's names."""

    def __init__(self, source: Opened, matrices: Mapping[str, Matrix]):
        self.ov, self.op = library("openvino"), library("openvino.opset13")
        self.source, self.matrices = source, matrices
        self.constants: dict[str, Any] = {}

    def constant(self, values: Any, kind: type) -> Any:
        return self.op.constant(np.asarray(values, dtype=kind))

    def store(self, name: str, kind: str, shape: tuple[int, ...], data: bytes) -> Any:
        """A constant of any type, from bytes that are copied: a tensor made over an array does not keep the array alive."""
        tensor = self.ov.Tensor(getattr(self.ov.Type, TYPES[kind]), self.ov.Shape(shape))
        tensor.data.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        found = self.op.constant(tensor)
        found.set_friendly_name(name)
        self.constants[name] = found
        return found

    def stored(self, name: str) -> Any:
        if name in self.constants:
            return self.constants[name]
        shape, dtype = self.source.model.kept[name]
        return self.store(name, str(dtype).removeprefix("torch."), shape, raw(self.source.tensor(name)))

    def fp32(self, x: Any) -> Any:
        return self.op.convert(x, "f32")

    def kept(self, name: str) -> Any:
        return self.fp32(self.stored(name))

    def rows(self, name: str, ids: Any) -> Any:
        return self.fp32(self.op.gather(self.stored(name), ids, self.constant(0, np.int64)))

    def product(self, name: str, x: Any) -> Any:
        if name not in self.matrices:
            return self.op.matmul(x, self.kept(f"{name}.weight"), False, True)
        m, (term,) = self.matrices[name], self.source.terms(name)
        data = store(term, m)  # type: ignore[arg-type]
        parts = {leaf: self.store(f"{name}.{leaf}", kind, shape, data[leaf]) for leaf, (kind, shape) in m.spec().items()}
        weight = self.fp32(parts["codes"])
        if "zero" in parts:
            weight = self.op.subtract(weight, self.fp32(parts["zero"]))
        weight = self.op.multiply(weight, self.fp32(parts["scale"]))
        weight = self.op.reshape(weight, self.constant([m.out, m.inp], np.int64), False)
        return self.op.matmul(x, weight, False, True)

    def apply(self, op: str, *inputs: Any, **attributes: Any) -> Any:
        return self.operators()[op](*inputs, **attributes)

    def operators(self) -> dict[str, Callable[..., Any]]:
        op, number = self.op, self.constant
        return {
            "Add": op.add, "Sub": op.subtract, "Mul": op.multiply, "Div": op.divide, "Sqrt": op.sqrt,
            "Sigmoid": op.sigmoid, "Greater": op.greater, "Where": op.select, "Unsqueeze": op.unsqueeze,
            "MatMul": lambda x, y: op.matmul(x, y, False, False),
            "Gather": lambda x, at, axis: op.gather(x, at, number(axis, np.int64)),
            "Shape": lambda x: op.shape_of(x, "i64"),
            "Range": lambda start, stop, step: op.range(start, stop, step, "i64"),
            "Reshape": lambda x, shape: op.reshape(x, shape, True),  # zero: as it was
            "Transpose": lambda x, perm: op.transpose(x, number(perm, np.int64)),
            "Softmax": lambda x, axis: op.softmax(x, axis),
            "ReduceMean": lambda x, axes, keepdims: op.reduce_mean(x, axes, bool(keepdims)),
        }  # fmt: skip
