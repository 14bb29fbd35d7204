"""What the commands say while they work and when they stop: progress bars on a terminal, plain lines otherwise; one sentence
and an exit code for everything that ends early."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bitwright.errors import BadRequest, BrokenPromise

err = Console(stderr=True, soft_wrap=True, highlight=False)
INTERRUPTED = 130
out = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, done, of) that shows how far the work is."""
    if not err.is_terminal:
        last: dict[str, int] = {}

        def line(what: str, done: int, total: int) -> None:
            tenth = 10 * done // max(total, 1)
            if last.get(what) != tenth:
                last[what] = tenth
                err.print(f"{what}: {done} of {total}")

        yield line
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bars:
        tasks: dict[str, Any] = {}

        def bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield bar


def ends(command: Callable[[], Any]) -> int:
    """Run a command; its exit code. 0 done, 2 bad request or interrupted, 3 broken promise; a fault of ours is a traceback."""
    try:
        command()
    except BadRequest as error:
        err.print(f"[red]error:[/red] {plain(error)}")
        return 2
    except BrokenPromise as error:
        err.print(f"[red]broken promise:[/red] {plain(error)}")
        return 3
    except SystemExit as done:  # typer ends this way, with 130 where it was interrupted
        if done.code != INTERRUPTED:
            return int(done.code or 0)
    except KeyboardInterrupt:
        pass
    else:
        return 0
    err.print("Interrupted. Finished blocks are kept: the same command with --resume goes on from there.")
    return 2


def plain(error: Exception) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
