"""The tokenizer in the metadata: byte-level BPE from tokenizer.json, as llama.cpp's "gpt2" model has it.

llama.cpp knows how text is split before merging by a name (`tokenizer.ggml.pre`), each standing for expressions in its source. The
name is found by comparing the split of tokenizer.json, character by character, with those that we know; any other is refused, for
a wrong split is a silently worse model. Without a tokenizer.json the file has no vocabulary and takes token ids only.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.errors import BadRequest
from bitwright.terms.base import Json

NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5
OTHER_BPE = ("dropout", "unk_token", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False}


def split(numbers: str) -> list[dict[str, Json]]:
    pattern = {"Regex": WORDS + numbers + REST}
    return [{"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}, {**BYTES, "use_regex": False}]


# name: the steps of the pre-tokenizer, and whether words that are tokens are taken whole
PRE: dict[str, tuple[list[dict[str, Json]], bool]] = {
    "gpt-2": ([{**BYTES, "use_regex": True}], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}], False),
    "llama-bpe": (split(r"\p{N}{1,3}"), True),
    "dbrx": (split(r"\p{N}{1,3}"), False),
    "qwen2": (split(r"\p{N}"), False),
}


def metadata(companions: Sequence[Path], vocabulary: int, config: Mapping[str, Json]) -> dict[str, Any]:
    """The keys of `tokenizer.*`. Raises BadRequest for a tokenizer that llama.cpp would not follow."""
    by_name = {path.name: path for path in companions}
    if "tokenizer.json" not in by_name:
        return {"tokenizer.ggml.model": "none"} | marks({}, config, {}, vocabulary)
    whole = parsed(by_name["tokenizer.json"])
    beside = parsed(by_name["tokenizer_config.json"]) if "tokenizer_config.json" in by_name else {}
    try:
        tokens, types = listed(whole, vocabulary)
        merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
        found: dict[str, Any] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre(whole),
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.merges": merges,
        }
        return found | special(whole, beside, config, {token: i for i, token in enumerate(tokens)}) | template(beside, by_name)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRequest(f"tokenizer.json lacks what a byte-level BPE has ({error}); download the tokenizer again.") from None


def parsed(path: Path) -> dict[str, Json]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} cannot be read ({error}); download the tokenizer again.") from None
    return found if isinstance(found, dict) else {}


def pre(whole: Mapping[str, Json]) -> str:
    """llama.cpp's name of the split."""
    model, kind = whole["model"], whole["model"].get("type")
    odd = [key for key in OTHER_BPE if model.get(key)] + (["a normalizer"] if normalizes(whole.get("normalizer")) else [])
    if kind != "BPE" or odd:
        what = f"of the kind {kind!r}" + (f" with {odd[0]}" if odd else "")
        raise BadRequest(f"Only byte-level BPE is written to GGUF yet, and this tokenizer is {what}; use the native format.")
    step = whole.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    plain = [{key: value for key, value in s.items() if key != "trim_offsets"} for s in steps]
    for name, (wanted, whole_words) in PRE.items():
        if plain == wanted and bool(model.get("ignore_merges")) == whole_words:
            return name
    raise BadRequest(
        f"The tokenizer splits text in a way that has no name in llama.cpp that is known here (known: {', '.join(PRE)}); "
        "use the native format, or remove tokenizer.json to write a file without vocabulary."
    )


def normalizes(normalizer: Json) -> bool:
    return bool(normalizer) and (normalizer.get("type") != "Sequence" or bool(normalizer.get("normalizers")))


def listed(whole: Mapping[str, Json], vocabulary: int) -> tuple[list[str], list[int]]:
    """All tokens by id, and what each is; rows of the embedding that no token has are unused."""
    named: dict[int, tuple[str, int]] = {i: (token, NORMAL) for token, i in whole["model"]["vocab"].items()}
    for added in whole.get("added_tokens", []):
        named[added["id"]] = added["content"], CONTROL if added["special"] else USER
    if named and max(named) >= vocabulary:
        raise BadRequest(
            f"The tokenizer has the token id {max(named)} and the embedding {vocabulary} rows; resize the embedding of the model."
        )
    pairs = [named.get(i, (f"[PAD{i}]", UNUSED)) for i in range(vocabulary)]
    return [token for token, _ in pairs], [kind for _, kind in pairs]


def special(
    whole: Mapping[str, Json], beside: Mapping[str, Json], config: Mapping[str, Json], ids: Mapping[str, int]
) -> dict[str, Any]:
    """Ids of tokens with a meaning, and which of them a text gets around it."""
    from tokenizers import Tokenizer

    found = marks(beside, config, ids, len(ids))
    try:
        coder = Tokenizer.from_str(json.dumps(whole))
    except Exception as error:  # the library knows no other kind
        raise BadRequest(f"tokenizer.json is none that the tokenizers library reads ({error}); download it again.") from None
    with_, without = (coder.encode("a", add_special_tokens=flag).ids for flag in (True, False))
    at = next((i for i in range(len(with_)) if with_[i : i + len(without)] == without), 0)
    before, after = with_[:at], with_[at + len(without) :]
    bos, eos = (found.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos"))
    if before not in ([], [bos]) or after not in ([], [eos]):
        raise BadRequest(
            "The tokenizer puts other tokens around a text than its begin and end, which llama.cpp does not; use the native format."
        )
    return found | {"tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(after)}


def marks(beside: Mapping[str, Json], config: Mapping[str, Json], ids: Mapping[str, int], vocabulary: int) -> dict[str, Any]:
    """Ids of tokens with a meaning: as the tokenizer names them, else as the model's configuration does."""
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = beside.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        one = ids.get(text) if isinstance(text, str) else config.get(f"{name}_token_id")
        one = one[0] if isinstance(one, list) and one else one  # of several ends llama.cpp takes one
        if isinstance(one, int) and 0 <= one < vocabulary:
            found[f"tokenizer.ggml.{key}_token_id"] = np.uint32(one)
    return found


def template(beside: Mapping[str, Json], by_name: Mapping[str, Path]) -> dict[str, Any]:
    """How a conversation becomes text."""
    if "chat_template.jinja" in by_name:
        return {"tokenizer.chat_template": by_name["chat_template.jinja"].read_text("utf-8")}
    found = beside.get("chat_template")
    return {"tokenizer.chat_template": found} if isinstance(found, str) else {}
