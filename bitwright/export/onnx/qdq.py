"""ONNX with standard operators only: DequantizeLinear gives every compressed matrix, as any engine of opset 21 can."""

from dataclasses import dataclass
from pathlib import Path

from bitwright.activations.base import Activation
from bitwright.export.base import Kept, Metas, Model, Opened
from bitwright.export.onnx.directory import Onnx
from bitwright.progress import Progress

QDQ = Onnx("qdq")


@dataclass(frozen=True)
class OnnxQdq:
    """The format `onnx-qdq`: `onnx` in its other style, under a name of its own."""

    def refusal(self, model: Model) -> str | None:
        return QDQ.refusal(model)

    def remarks(self, model: Model) -> list[str]:
        return QDQ.remarks(model)

    def bits(self, name: str, metas: Metas, inputs: Activation | None = None) -> int:
        return QDQ.bits(name, metas)

    def kept_bytes(self, name: str, kept: Kept) -> int:
        return QDQ.kept_bytes(name, kept)

    def write(self, source: Opened, out: Path, progress: Progress) -> None:
        QDQ.write(source, out, progress)

    def recognises(self, root: Path) -> bool:
        return QDQ.recognises(root)

    def open(self, root: Path) -> Opened:
        return QDQ.open(root)
