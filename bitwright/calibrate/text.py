"""Text for a model: windows of a source in the tokens of its own tokenizer."""

from pathlib import Path

from bitwright.calibrate.data import Split, Windows, windows
from bitwright.checkpoint import locate
from bitwright.errors import BadRequest


def text_windows(model: str | Path, source: str, samples: int, length: int, split: Split, seed: int = 0) -> Windows:
    """Windows of a source of text in the tokens of a model. Raises BadRequest where there is no tokenizer or too little text."""
    from transformers import AutoTokenizer

    root = locate(str(model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(root)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0].rstrip(".:")
        raise BadRequest(
            f"{model} has no tokenizer that transformers can read ({why}); "
            "add its tokenizer files, or evaluate --against its original."
        ) from None
    return windows(tokenizer, source, samples=samples, length=length, split=split, seed=seed)
