"""The small JSON files beside the weights, which say what these are: objects, or the user hears which file is none."""

import json
from pathlib import Path

from bitwright.errors import BadRequest
from bitwright.terms.base import Json


def method(root: Path) -> str | None:
    """The `quant_method` of a directory; None where it is no compressed one. Raises BadRequest where config.json is not one."""
    if not (root / "config.json").is_file():
        return None
    config = configuration(root).get("quantization_config")
    return str(config.get("quant_method")) if isinstance(config, dict) else None


def configuration(root: Path) -> dict[str, Json]:
    """config.json. Raises BadRequest where it is not one."""
    return read_json(root / "config.json", "download the model again")


def read_json(path: Path, remedy: str) -> dict[str, Json]:
    """Raises BadRequest where the file is not an object of JSON."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"{path} cannot be read ({error}); {remedy}.") from None
    if not isinstance(found, dict):
        raise BadRequest(f"{path} is not a configuration; {remedy}.")
    return found
