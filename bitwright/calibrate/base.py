"""The protocol of what a model is calibrated or judged on: rows of inputs, and what must be known of them."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Data(Protocol):
    """What a model is calibrated or judged on: rows of inputs for its body. `Windows` of text, `Images`."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def inputs(self) -> Tensor: ...  # [rows, ...]: what the body is called on
    @property
    def tokens(self) -> int: ...  # about as many as pass a block, for the estimate of memory
    @property
    def answers(self) -> int: ...  # predictions the model makes
    @property
    def sha256(self) -> str: ...
    def take(self, rows: int) -> Any: ...
    def part(self, rows: slice) -> Any: ...
    def refusal(self, config: Any) -> str | None: ...  # one sentence where a model cannot take it
    def told(self) -> dict[str, Any]: ...  # for the report
