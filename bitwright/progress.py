"""How long work tells how far it is: what is being done, how much of it is done, of how much."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """The progress of a library call: none."""
