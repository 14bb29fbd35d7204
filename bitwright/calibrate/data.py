"""Token windows: the text a model is calibrated on, and the other text it is judged on.

Documents are tokenised without special tokens, an end-of-text id between them, joined per domain, cut into disjoint
windows of `length`; `samples` of those are drawn with the seed, evenly over the domains as far as the text reaches.
The two splits share no document: a module, topic or record falls into one half by a hash of its name or text, a text
file is cut once in the middle. `overlap` measures what is shared all the same, by 13-grams (card: evaluation, 4 and 5).

The default source is text every machine has: the Python standard library ("code") and its help topics ("prose").
Cost: about eight times the text drawn is tokenised, so that a few long documents do not fill the sample.
"""

import hashlib
import json
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bitwright.errors import BadRequest

Split = Literal["calibration", "evaluation"]
Document = tuple[str, str]  # its name, its text
SOURCES = "'stdlib', a .txt, .md, .py or .jsonl file, a directory of such files, or 'hub:name:config:split:column'"
SUFFIXES = (".txt", ".md", ".py", ".jsonl")
POOL = 8  # windows cut for each window drawn
MANY = 12  # a directory with more files than this has its suffixes as domains, otherwise its file names
NOT_PROGRAMS = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings", "lib2to3"}


@dataclass(frozen=True)
class Windows:
    """Disjoint windows of token ids, and where they came from.

    `bytes` counts the UTF-8 bytes of tokens 1 .. length-1 of each window: those a model can be scored on when the first
    token has no context; ids between documents have none. `titles` names the document in the middle of each window.
    """

    ids: Int[Tensor, "rows length"]
    domains: tuple[str, ...]
    domain: Int[Tensor, "rows"]
    titles: tuple[str, ...]
    bytes: Int[Tensor, "rows"]
    name: str
    split: str | None
    seed: int

    @property
    def inputs(self) -> Int[Tensor, "rows length"]:
        return self.ids

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    @property
    def answers(self) -> int:
        return self.ids.numel()

    def refusal(self, config: Any) -> str | None:
        if int(self.ids.max()) >= getattr(config, "vocab_size", 0):
            return "The calibration tokens are not of this model's vocabulary; make them with its own tokenizer."
        return None

    def told(self) -> dict[str, Any]:
        rows, length = self.ids.shape
        return {"name": self.name, "sha256": self.sha256, "rows": rows, "length": length, "seed": self.seed}

    @property
    def sha256(self) -> str:
        """Hash of the ids as little-endian int64, row by row."""
        return hashlib.sha256(self.ids.numpy().astype("<i8").tobytes()).hexdigest()

    def take(self, rows: int) -> "Windows":
        """The first `rows` windows; they are in random order, so this is a random subset."""
        return self.part(slice(rows))

    def part(self, rows: slice) -> "Windows":
        return replace(self, **{name: getattr(self, name)[rows] for name in ("ids", "domain", "titles", "bytes")})


def windows(
    tokenizer: Any,
    source: str | Path = "stdlib",
    samples: int = 128,
    length: int = 512,
    split: Split | None = "calibration",
    seed: int = 0,
) -> Windows:
    """Draw `samples` windows of `length` tokens from a source; the same arguments and text give the same ids.

    Args:
        tokenizer: a transformers tokenizer. Slow ones have no offsets; a document's bytes are then spread evenly.
        source: `stdlib`, a path, or a Hugging Face dataset (see `SOURCES`).
        split: which of the two disjoint halves; None takes all of it.

    Raises:
        BadRequest: unknown or unreadable source, or too little text.
    """
    if samples < 1 or length < 2:
        raise BadRequest(f"{samples} windows of {length} tokens cannot be: ask for at least 1 window of 2 tokens")
    if split not in ("calibration", "evaluation", None):
        raise BadRequest(f"no split {split!r}: give 'calibration', 'evaluation' or None for all of the text")
    streams = _documents(str(source), split, seed)
    cuts = {domain: _cut(tokenizer, texts, length, POOL * samples) for domain, texts in streams.items()}
    name = str(source) if split is None else f"{source}/{split}"
    room = [len(ids) for ids, _, _ in cuts.values()]
    if sum(room) < samples:
        raise BadRequest(
            f"{name} holds {sum(room)} windows of {length} tokens and {samples} were asked for: "
            "ask for fewer samples, a shorter length, or give more text"
        )
    ids, sizes, titles, domain = [], [], [], []
    for at, ((rows, counts, names), share) in enumerate(zip(cuts.values(), _shares(room, samples))):
        drawn = np.random.default_rng([seed, at]).choice(len(rows), share, replace=False)
        ids.append(rows[drawn])
        sizes.append(counts[drawn])
        titles += [names[i] for i in drawn]
        domain += [at] * share
    order = np.random.default_rng(seed).permutation(samples)
    return Windows(
        ids=torch.from_numpy(np.concatenate(ids)[order]),
        domains=tuple(cuts),
        domain=torch.tensor(domain)[torch.from_numpy(order)],
        titles=tuple(titles[i] for i in order),
        bytes=torch.from_numpy(np.concatenate(sizes)[order]),
        name=name,
        split=split,
        seed=seed,
    )


def overlap(seen: Int[Tensor, "rows length"], judged: Int[Tensor, "rows2 length2"], n: int = 13) -> float:
    """Share of the n-grams of `judged` that occur in `seen`; n-grams do not cross windows.

    Raises:
        BadRequest: windows shorter than n.
    """
    if min(seen.shape[1], judged.shape[1]) < n:
        raise BadRequest(f"windows of {min(seen.shape[1], judged.shape[1])} tokens hold no {n}-gram: use longer windows")
    odd = np.random.default_rng(0).integers(1, 2**63, size=n, dtype=np.uint64) | np.uint64(1)

    def hashes(ids: Tensor) -> np.ndarray:  # a random odd multiplier per place, modulo 2^64
        grams = np.lib.stride_tricks.sliding_window_view(ids.numpy().astype(np.uint64), n, axis=1)
        return sum((grams[:, :, i] + np.uint64(1)) * odd[i] for i in range(n)).ravel()

    return float(np.isin(hashes(judged), hashes(seen)).mean())


def _cut(tokenizer: Any, documents: Iterable[Document], length: int, most: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Ids [windows, length], scored bytes [windows] and titles of the disjoint windows of one domain's text."""
    separator = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    end = [] if separator is None else [separator]
    ids: list[int] = []
    sizes: list[np.ndarray] = []
    titles: list[str] = []
    for title, text in documents:
        tokens, counts = _tokens(tokenizer, text)
        ids += [*tokens, *end]
        sizes += [counts, np.zeros(len(end), np.int64)]
        titles += [title] * (len(tokens) + len(end))
        if len(ids) >= most * length:
            break
    rows = len(ids) // length
    cut = np.array(ids[: rows * length], np.int64).reshape(rows, length)
    scored = np.concatenate([np.zeros(0, np.int64), *sizes])[: rows * length].reshape(rows, length)[:, 1:].sum(1)
    return cut, scored, titles[length // 2 : rows * length : length]


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], np.ndarray]:
    """Ids of a text and the UTF-8 bytes each adds: from the end of the token before to its own end."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids = list(coded["input_ids"])
    point = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    place = np.concatenate([[0], np.cumsum(1 + (point >= 0x80) + (point >= 0x800) + (point >= 0x10000))])
    if fast:
        ends = np.array([end for _, end in coded["offset_mapping"]], np.int64)
        reached = place[np.maximum.accumulate(ends)] if ids else ends
    else:
        reached = np.arange(1, len(ids) + 1) * place[-1] // max(len(ids), 1)
    return ids, np.diff(reached, prepend=0)


def _shares(room: list[int], samples: int) -> list[int]:
    """`samples` over domains in turn, each until its windows are used up."""
    shares = [0] * len(room)
    while sum(shares) < samples:
        for i, most in enumerate(room):
            shares[i] += shares[i] < most and sum(shares) < samples
    return shares


def _documents(source: str, split: Split | None, seed: int) -> dict[str, Iterator[Document]]:
    """The documents of a source by domain, shuffled, read as they are asked for."""
    if source == "stdlib":
        return {"code": _modules(split, seed), "prose": _topics(split, seed)}
    if source.startswith("hub:"):
        return {source.split(":")[1]: _hub(source, split, seed)}
    path = Path(source)
    if not path.exists() or (path.is_file() and path.suffix not in SUFFIXES):
        raise BadRequest(f"no data source {source!r}: give {SOURCES}")
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES) if path.is_dir() else [path]
    streams: dict[str, list[Path]] = {}
    for file in files:
        streams.setdefault(file.suffix if len(files) > MANY else file.name, []).append(file)
    if not streams:
        raise BadRequest(f"{source!r} holds no {', '.join(SUFFIXES)} file: give {SOURCES}")
    return {domain: _files(files, split, seed) for domain, files in streams.items()}


def _half(key: str) -> Split:
    return "evaluation" if hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[0] & 1 else "calibration"


def _shuffled(names: Iterable[str], read: Callable[[str], str], split: Split | None, seed: int) -> Iterator[Document]:
    kept = sorted(name for name in names if split in (None, _half(name)))
    for i in np.random.default_rng(seed).permutation(len(kept)):
        yield kept[i], read(kept[i])


def _modules(split: Split | None, seed: int) -> Iterator[Document]:
    """Source files of the standard library, without its tests, tables and vendored packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {p.relative_to(root).as_posix(): p for p in root.rglob("*.py")}
    names = [name for name in files if not NOT_PROGRAMS & set(Path(name).parts)]
    if not names:
        raise BadRequest("this Python comes without the source of its standard library: give --data a file of yours")

    def read(name: str) -> str:
        with tokenize.open(files[name]) as file:  # honours coding cookies
            return file.read()

    return _shuffled(names, read, split, seed)


def _topics(split: Split | None, seed: int) -> Iterator[Document]:
    """Help topics of Python. Long topics contain short ones, so a paragraph stays only where it came first."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    texts: dict[str, str] = {}
    for name, text in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        paragraphs = [p for p in text.split("\n\n") if p.strip() not in seen]
        seen |= {p.strip() for p in paragraphs}
        texts[name] = "\n\n".join(paragraphs)
    return _shuffled(texts, texts.__getitem__, split, seed)


def _files(files: list[Path], split: Split | None, seed: int) -> Iterator[Document]:
    """Text files cut at the line end nearest their middle; .jsonl records by the hash of their text."""
    for i in np.random.default_rng(seed).permutation(len(files)):
        try:
            text = files[i].read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadRequest(f"{files[i]} is not UTF-8 text: convert it or give {SOURCES}") from None
        if files[i].suffix == ".jsonl":
            records = {f"{files[i].name}:{n}": line for n, line in enumerate(text.split("\n")) if line.strip()}
            texts = {name: _record(name, line) for name, line in records.items()}
            names = [name for name, text in texts.items() if split in (None, _half(text))]
            yield from _shuffled(names, texts.__getitem__, None, seed)
        else:
            middle = text.find("\n", len(text) // 2) + 1 or len(text) // 2
            yield files[i].name, {"calibration": text[:middle], "evaluation": text[middle:], None: text}[split]


def _record(name: str, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise BadRequest(f'record {name} has no text: each line of a .jsonl source is an object with a "text" string')
    return text


def _hub(source: str, split: Split | None, seed: int) -> Iterator[Document]:
    """Records of a Hugging Face dataset, streamed: the only source that uses the network."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise BadRequest("'hub:' data needs the package datasets: install bitwright[eval], or give a file") from None
    name, config, part, column = (*source.split(":")[1:], *[""] * 4)[:4]
    rows = load_dataset(name, config or None, split=part or "train", streaming=True).shuffle(seed=seed)
    for n, row in enumerate(rows):
        text = row.get(column or "text")
        if not isinstance(text, str):
            raise BadRequest(f"{source} has no text column {column or 'text'!r}: its columns are {', '.join(row)}")
        if split in (None, _half(text)):
            yield f"{name}:{n}", text
