"""The small models that ship with bitwright: trained by the scripts beside this file, each with its model card."""

from pathlib import Path

from bitwright.errors import BadRequest

_HERE = Path(__file__).parent


def path(name: str) -> Path:
    """The directory of the shipped model `name` ("lm"); what `zoo:lm` stands for on the command line.

    Raises BadRequest for a name that is not shipped. A directory counts as a model once it has its card (README.md).
    """
    known = sorted(card.parent.name for card in _HERE.glob("*/README.md"))
    if name not in known:
        raise BadRequest(f"the zoo has no model {name!r}; it ships {', '.join(known)}")
    return _HERE / name
