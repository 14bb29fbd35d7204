"""Pieces: semantic ids as words of one vocabulary, long where items are popular (arXiv 2306.08121, section on SentencePiece).

    item = (c_1 ... c_L)  ->  a string of L symbols (level, code)  ->  pieces of 1 to L symbols  ->  sum of their rows of one table

The vocabulary is that of a unigram language model (Kudo, 2018) on the items as often as they are shown: popular items become one
piece, which a model can memorise; rare ones fall apart into single symbols, about which it knows something from other items.
A symbol is a character of a private plane, level by level, so that 17 on the first level is not 17 on the second; nothing is
split at spaces, every symbol is in the vocabulary whether it was seen or not, and pieces spell the id out: nothing is lost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer
from torch import Tensor

from bitwright.errors import BadRequest

FIRST, ROOM = 0xF0000, 65534  # a plane of characters without meaning


@dataclass(frozen=True, eq=False)
class Pieces:
    """`rows` of the table that pieces number; ids of `levels` numbers below `points`."""

    tokenizer: Tokenizer
    levels: int
    points: int

    @classmethod
    def train(
        cls, codes: Int64[Tensor, "n levels"], points: int, rows: int, impressions: Int64[Tensor, "n"] | None = None
    ) -> "Pieces":
        """At most `rows` pieces, from ids and how often each is shown (None: once). Raises BadRequest where the symbols alone are
        more than `rows`, or more than there are characters."""
        levels = codes.shape[1]
        if levels * points > min(rows, ROOM):
            raise BadRequest(
                f"{levels} levels of {points} are {levels * points} symbols; give a table of as many rows, at most {ROOM}."
            )
        tokenizer = Tokenizer(Unigram())
        symbols = [chr(FIRST + i) for i in range(levels * points)]
        trainer = UnigramTrainer(
            vocab_size=rows, initial_alphabet=symbols, special_tokens=[], max_piece_length=levels, show_progress=False
        )
        shown = torch.ones(len(codes), dtype=torch.int64) if impressions is None else impressions
        tokenizer.train_from_iterator(repeated(spelled(codes, points), shown.tolist()), trainer)
        return cls(tokenizer, levels, points)

    @property
    def rows(self) -> int:
        found: int = self.tokenizer.get_vocab_size()
        return found

    def encode(self, codes: Int64[Tensor, "n levels"]) -> list[list[int]]:
        """The rows of the table that an item is the sum of."""
        return [found.ids for found in self.tokenizer.encode_batch(spelled(codes, self.points))]

    def decode(self, pieces: Sequence[Sequence[int]]) -> Int64[Tensor, "n levels"]:
        symbols = {row: piece for piece, row in self.tokenizer.get_vocab().items()}
        spelt = ["".join(symbols[row] for row in item) for item in pieces]
        return torch.tensor([[(ord(symbol) - FIRST) % self.points for symbol in item] for item in spelt])


def spelled(codes: Int64[Tensor, "n levels"], points: int) -> list[str]:
    symbols = codes + FIRST + points * torch.arange(codes.shape[1])
    return ["".join(map(chr, item)) for item in symbols.tolist()]


def repeated(items: Sequence[str], times: Sequence[int]) -> Iterator[str]:
    for item, count in zip(items, times):
        for _ in range(count):
            yield item
