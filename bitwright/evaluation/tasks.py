"""Multiple choice from held-out text: thousands of items that cost almost nothing (card: evaluation, section 3).

Every option is one token, so an item is a position and a few token ids, and its scores are logits at a place where the
states are there already. Sum and length-normalised log-likelihood are the same thing then.

    next word  a whole word of the text against three words of the same text, drawn by how often they occur
    bracket    the text's closing bracket (and what is in one token with it) against the two others
    copy       random tokens of the text, repeated: the one seen 16, 32 or 64 tokens ago among four of the sequence

Only `copy` needs windows of its own (36 of 128 tokens). The log of the probability on all options together goes with
the scores: a KL over renormalised options hides what was lost to other tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bitwright.calibrate.data import Windows
from bitwright.errors import BadRequest
from bitwright.evaluation.hidden import Hidden, logits

CONTEXT = 32  # tokens before the first item of a window
CLOSERS = (")", "]", "}")
DISTANCES = (16, 32, 64)
LENGTH = 128  # of a copy window


@dataclass(frozen=True)
class Items:
    """Questions about one set of windows: after `position` of window `row`, which of `options` comes next?"""

    name: str
    row: Int[np.ndarray, "items"]
    position: Int[np.ndarray, "items"]
    options: Int[np.ndarray, "items options"]
    answer: Int[np.ndarray, "items"]

    def take(self, rows: int) -> "Items":
        """The items of the first `rows` windows."""
        kept = self.row < rows
        return Items(self.name, self.row[kept], self.position[kept], self.options[kept], self.answer[kept])


@dataclass(frozen=True)
class Answers:
    """Log-probability of every option, and of all of an item's options together, in nats."""

    scores: Float[np.ndarray, "items options"]
    mass: Float[np.ndarray, "items"]


def text_items(windows: Windows, tokenizer: Any, seed: int = 0, most: int = 2000) -> tuple[Items, ...]:
    """`next word` and `bracket` items of these windows, each at most `most`; a task without items is left out."""
    rng = np.random.default_rng(seed)
    tasks = (_words(windows, tokenizer, rng, most), _brackets(windows, tokenizer, rng, most))
    return tuple(items for items in tasks if items)


def copy_items(windows: Windows, seed: int = 0, rows: int = 36) -> tuple[Int[Tensor, "rows length"], Items]:
    """Windows of repeated random tokens, and the questions about their second copy.

    Raises:
        BadRequest: windows of less than 8 tokens, or less than 4 different ones.
    """
    rng = np.random.default_rng(seed)
    common = np.unique(windows.ids.numpy())
    length = min(LENGTH, windows.ids.shape[1])
    if length < 8 or len(common) < 4:
        raise BadRequest("evaluation windows need 8 tokens or more, and 4 different ones: use longer windows")
    distances = [d for d in DISTANCES if 2 * d <= length and d <= len(common)] or [min(length // 2, len(common))]
    ids = np.empty((rows, length), np.int64)
    found: list[tuple[int, int, np.ndarray, int]] = []
    for row in range(rows):
        distance = distances[row % len(distances)]
        sequence = rng.choice(common, distance, replace=False)
        ids[row] = np.resize(sequence, length)
        for k in range(min(4, distance - 1), distance):  # the first tokens of the copy have nothing to match yet
            others = rng.choice(np.delete(sequence, k), 3, replace=False)
            found.append((row, distance + k - 1, *_placed(int(sequence[k]), others, rng)))
    return torch.from_numpy(ids), _items("copy", found)


def answer(hidden: Hidden, head: nn.Module, items: Items, chunk: int = 256) -> Answers:
    """Score all items from the states of their windows."""
    scores, mass = [], []
    states = hidden.states[torch.from_numpy(items.row), torch.from_numpy(items.position)]
    with torch.no_grad():
        for part, options in zip(states.split(chunk), torch.from_numpy(items.options).split(chunk)):
            log_p = logits(head, part, hidden.dtype).log_softmax(1)
            chosen = log_p.gather(1, options.to(log_p.device)).double()
            scores.append(chosen.cpu())
            mass.append(chosen.logsumexp(1).cpu())
    return Answers(torch.cat(scores).numpy(), torch.cat(mass).numpy())


def _words(windows: Windows, tokenizer: Any, rng: np.random.Generator, most: int) -> Items | None:
    """Tokens that are a whole word: marked as a word's start, letters only, and the next token starts something new."""
    ids = windows.ids.numpy()
    vocabulary = np.unique(ids)
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(vocabulary.tolist())]
    word, fresh = np.zeros((2, int(vocabulary.max()) + 1), bool)
    for i, piece in zip(vocabulary, pieces):
        word[i] = piece[0] in "Ġ▁" and len(piece) > 2 and piece[1:].isascii() and piece[1:].isalpha()
        fresh[i] = not (piece[0].isascii() and (piece[0].isalnum() or piece[0] in "_'"))
    whole = word[ids[:, 1:-1]] & fresh[ids[:, 2:]]
    seen = ids[:, 1:-1][whole]  # every occurrence once: drawing from it is drawing by frequency
    row, position = np.nonzero(whole[:, CONTEXT:])
    if len(row) == 0 or len(np.unique(seen)) < 4:
        return None
    found = []
    for i in rng.permutation(len(row))[:most]:
        at = int(position[i]) + CONTEXT
        truth = int(ids[row[i], at + 1])
        others: list[int] = []
        while len(others) < 3:
            drawn = int(rng.choice(seen))
            if drawn != truth and drawn not in others:
                others.append(drawn)
        found.append((int(row[i]), at, *_placed(truth, np.array(others), rng)))
    return _items("next word", found)


def _brackets(windows: Windows, tokenizer: Any, rng: np.random.Generator, most: int) -> Items | None:
    """Tokens that are a closing bracket and a tail ("),", "]:"), where all three brackets exist with that tail."""
    ids, vocabulary = windows.ids.numpy(), tokenizer.get_vocab()
    tails = {piece[1:] for piece in vocabulary if piece[:1] == CLOSERS[0]}
    families = [[vocabulary.get(closer + tail) for closer in CLOSERS] for tail in sorted(tails)]
    family = {token: options for options in families if None not in options for token in options}
    row, position = np.nonzero(np.isin(ids[:, CONTEXT + 1 :], list(family)))
    found = []
    for i in rng.permutation(len(row))[:most]:
        at = int(position[i]) + CONTEXT
        options = family[int(ids[row[i], at + 1])]
        found.append((int(row[i]), at, np.array(options), options.index(int(ids[row[i], at + 1]))))
    return _items("bracket", found) if found else None


def _placed(truth: int, others: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Options with the truth at a random place, and that place."""
    place = int(rng.integers(len(others) + 1))
    return np.insert(others, place, truth), place


def _items(name: str, found: list[tuple[int, int, np.ndarray, int]]) -> Items:
    row, position, options, place = zip(*found)
    return Items(name, np.array(row), np.array(position), np.stack(options), np.array(place))
