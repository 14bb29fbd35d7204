"""Rows are items, queries are inputs: roundings of weights on vectors."""

import pytest
import torch
from torch import Tensor

from bitwright.embed import codecs, rounded
from bitwright.embed.codec import Codec, Codes
from bitwright.embed.index import Index
from bitwright.errors import BadRequest
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.quantease import QuantEase

DIM = 32


@pytest.fixture
def vectors() -> Tensor:
    """Groups of documents."""
    size = torch.logspace(0, -1, DIM)
    return (torch.randn(24, DIM)[torch.randint(24, (500,))] + 0.5 * torch.randn(500, DIM)) * size + 0.3


@pytest.fixture
def queries() -> Tensor:
    """Of few directions, which are not those of the documents."""
    return torch.randn(400, 4) @ torch.randn(4, DIM) + 0.1 * torch.randn(400, DIM)


def missed(codec: Codec, codes: Codes, x: Tensor, q: Tensor) -> float:
    """The mean squared error of scores."""
    unit = torch.nn.functional.normalize
    return float((unit(q) @ (codec.decode(codes) - unit(x)).T).square().mean())


@pytest.mark.parametrize("how", [GPTQ(), QuantEase()], ids=["gptq", "quantease"])
@pytest.mark.parametrize("bits", [1.0, 2.0, 4.0])
def test_queries_of_every_direction_ask_for_the_nearest_points(bits: float, how: Rounding, vectors: Tensor):
    codec = codecs.fit(vectors, bits, "rotated")
    nearest, found = codec.encode(vectors), rounded.encode(codec, vectors, torch.eye(DIM), how)
    assert torch.equal(found.nibbles, nearest.nibbles)
    torch.testing.assert_close(found.factor, nearest.factor, rtol=2e-3, atol=0)


@pytest.mark.parametrize("how", [GPTQ(damp=1e-3), QuantEase()], ids=["gptq", "quantease"])
@pytest.mark.parametrize("bits", [1.0, 2.0, 4.0])
def test_scores_of_queries_like_the_sample_are_nearer(bits: float, how: Rounding, vectors: Tensor, queries: Tensor):
    codec = codecs.fit(vectors, bits, "rotated")
    sample, fresh = queries.split(200)
    codes = rounded.encode(codec, vectors, rounded.moments(codec, sample), how)
    assert missed(codec, codes, vectors, fresh) < 0.3 * missed(codec, codec.encode(vectors), vectors, fresh)


def test_an_index_takes_them_as_its_own(vectors: Tensor, queries: Tensor):
    codec = codecs.fit(vectors, 2.0, "itq")
    index = Index.empty(codec)
    index.add(rounded.encode(codec, vectors, rounded.moments(codec, queries)), space=codec.space_id)
    assert index.search(queries, 5).ids.shape == (400, 5)


@pytest.mark.parametrize("name, bits", [("product", 1.0), ("additive", 1.0), ("residual", 1.0), ("rotated", 8.0)])
def test_codes_that_are_not_of_single_coordinates_are_refused(name: str, bits: float, vectors: Tensor):
    with pytest.raises(BadRequest, match="single coordinates"):
        rounded.encode(codecs.fit(vectors, bits, name), vectors, torch.eye(DIM))
