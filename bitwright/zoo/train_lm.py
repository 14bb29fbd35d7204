"""Train the zoo's language model: a 6.95 M parameter Llama on books, Python source and help pages.

Idea: a model small enough to ship and to compress in seconds, trained far past the point where it is merely plausible,
so that what a compressor breaks in it is something it had really learnt.

Objective: the mean next-token cross-entropy over windows x of `length` tokens, each epoch cut anew,

    L(θ) = -1/T Σ_t log p_θ(x_t | x_<t),    AdamW, decay on matrices only, warm-up, plateau, linear decay to zero.

Sources: the architecture is Llama's (Touvron et al., 2023) with grouped-query heads (Ainslie et al., 2023); the
schedule is "warm-up, stable, decay" (Hu et al., 2024). Beside the weights an exponential average of them is kept;
whichever of the two has had the lowest loss on the validation texts is exported, so the run may go on past its best.
Differs from a full-scale run: one device, no masking between documents, the text repeated for many epochs.
Cost: see `lm/README.md`. The script imports nothing of bitwright, so it runs where only torch and transformers are.

    python train_lm.py tokenizer --text train.txt.xz --out lm
    python train_lm.py encode    --text train.txt.xz --model lm --out ids.npy
    python train_lm.py train     --ids ids.npy --valid valid-books.txt valid-python.txt --model lm --steps 19004
    python train_lm.py evaluate  --model lm --valid valid-books.txt valid-python.txt

Texts are UTF-8, documents separated by U+001E, optionally xz-compressed. A token stream is one separator token (id 0)
before every document.
"""

import argparse
import json
import lzma
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

SEPARATOR = "<|endoftext|>"
VOCABULARY = 4096
ARCHITECTURE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
RECIPE = {"seed": 0, "batch": 128, "length": 1024, "warm": 500, "report": 1000, "first_report": 100}
RECIPE |= {"lr": 3e-3, "decay": 0.5, "weight_decay": 0.1, "ema": 0.999}  # type: ignore[dict-item]


# ---- text to tokens -------------------------------------------------------------------------------------------------


def documents(path: Path) -> list[str]:
    """The documents of one text file (UTF-8, separated by U+001E, xz-compressed if its name says so)."""
    raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return raw.decode().split("\x1e")


def train_tokenizer(text: Path, out: Path) -> None:
    """Learn a byte-level BPE of 4096 entries on the text; write it where AutoTokenizer looks for it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR],  # the first special token gets id 0
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # so that every byte has a token
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(text), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        model_max_length=ARCHITECTURE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)


def encode(text: Path, tokenizer_file: Path) -> Int[np.ndarray, " tokens"]:
    """One stream of token ids (uint16): the separator before every document."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    stream: list[np.ndarray] = []
    docs = documents(text)
    for start in range(0, len(docs), 64):  # in batches: the encodings of all documents at once would fill the memory
        for encoding in tokenizer.encode_batch(docs[start : start + 64], add_special_tokens=False):
            stream.append(np.array([0, *encoding.ids], dtype=np.uint16))
    return np.concatenate(stream)


# ---- model and loss -------------------------------------------------------------------------------------------------


def new_model(seed: int, changes: dict[str, Any]):
    """A randomly initialised LlamaForCausalLM, fp32; what writes into the residual starts √(2 layers) smaller."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**ARCHITECTURE | changes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_((2 * model.config.num_hidden_layers) ** -0.5)
    return model


def token_losses(model, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length-1"]:
    """Cross-entropy in nats of every token given those before it in its row; the first of each row is not scored."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


@torch.no_grad()
def mean_loss(model, stream: Int[Tensor, " tokens"], window: int = 512, batch: int = 64) -> float:
    """Mean loss in nats per token over disjoint windows of `window` tokens; an incomplete last window is dropped."""
    rows = stream[: len(stream) // window * window].view(-1, window)
    return sum(float(token_losses(model, part).sum()) for part in rows.split(batch)) / (len(rows) * (window - 1))


def windows(stream: Int[Tensor, " tokens"], length: int, batch: int) -> Iterator[Int[Tensor, "batch length+1"]]:
    """Endless batches. Every epoch cuts the stream at a new phase and shuffles the cuts: each token once an epoch."""
    span = torch.arange(length + 1, device=stream.device)
    pending = torch.empty(0, dtype=torch.long, device=stream.device)
    while True:
        while len(pending) < batch:
            phase = int(torch.randint(length, (1,)))
            cuts = torch.randperm((len(stream) - 1 - phase) // length, device=stream.device) * length + phase
            pending = torch.cat([pending, cuts])
        starts, pending = pending[:batch], pending[batch:]
        yield stream[starts[:, None] + span].long()


def rate(progress: float, step: int, peak: float, warm: int, decay: float) -> float:
    """Learning rate: linear warm-up over `warm` steps, plateau, linear to zero over the last `decay` of the run."""
    return peak * min(1.0, (step + 1) / warm, max(0.0, 1.0 - progress) / decay)


# ---- training -------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Train until `steps` or `seconds` is used up, whichever the run is nearer to; the schedule follows that clock."""
    device = torch.device(args.device)
    model = new_model(args.seed, args.changes).to(device)
    torch.set_float32_matmul_precision("high")
    stream = torch.from_numpy(np.load(args.ids).astype(np.int32)).to(device)
    valid = {
        path.stem: torch.from_numpy(encode(path, args.model / "tokenizer.json").astype(np.int64)).to(device) for path in args.valid
    }
    mixed = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    loss_of = torch.compile(token_losses) if device.type == "cuda" else token_losses

    weights = list(model.parameters())
    matrices, vectors = [w for w in weights if w.dim() == 2], [w for w in weights if w.dim() != 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), eps=1e-10, fused=device.type == "cuda")
    average = new_model(args.seed, args.changes).to(device).eval()
    average.load_state_dict(model.state_dict())

    def measure(candidate) -> dict[str, float]:
        with mixed:
            return {name: round(mean_loss(candidate, ids, batch=args.batch), 4) for name, ids in valid.items()}

    log: list[dict] = []
    lowest, shipped = math.inf, {}
    recent: list[Tensor] = []
    batches = windows(stream, args.length, args.batch)
    began = time.perf_counter()
    step, progress, next_report = 0, 0.0, args.first_report
    while progress < 1.0:
        lr = rate(progress, step, args.lr, args.warm, args.decay)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with mixed:
            loss = loss_of(model, next(batches)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # The average forgets over about 1/50 of the run so far, at most 1/(1 - ema) steps: early ones are bad weights.
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), weights, max(1.0 - args.ema, 50 / (step + 51)))
        recent.append(loss.detach())
        step += 1
        if step % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()  # the clock must not run ahead of the device
        seconds = time.perf_counter() - began
        progress = max(step / args.steps, seconds / args.seconds)
        if step >= next_report or progress >= 1.0:
            raw, averaged = measure(model), measure(average)
            tokens = step * args.batch * args.length
            row = {"step": step, "tokens": tokens, "epochs": round(tokens / len(stream), 2), "lr": round(lr, 7)}
            row |= {"seconds": round(seconds, 1), "train": round(float(torch.stack(recent).mean()), 4)}
            log.append(row | {"last": raw, "average": averaged})
            print(json.dumps(log[-1]), flush=True)
            for weights_of, candidate, losses in (("last", model, raw), ("average", average, averaged)):
                if sum(losses.values()) < lowest:
                    lowest, shipped = sum(losses.values()), {"step": step, "weights": weights_of, "valid": losses}
                    export(candidate, args.model)
            settings = {name: getattr(args, name) for name in (*RECIPE, "steps", "seconds", "changes")}
            record = {"settings": settings, "device": device_name, "train_tokens": len(stream), "shipped": shipped}
            (args.model / "training.json").write_text(json.dumps(record | {"log": log}, indent=1) + "\n")
            recent.clear()
            next_report = step + min(step, args.report)  # at 100, 200, 400, ... and then at regular distance


def export(model, directory: Path) -> None:
    """Write bf16 weights and configuration into the model directory, beside its tokenizer."""
    shipped = type(model)(model.config).bfloat16()
    shipped.load_state_dict({name: value.to("cpu", torch.bfloat16) for name, value in model.state_dict().items()})
    shipped.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(model_dir: Path, texts: list[Path], prompts: list[str]) -> None:
    """Print perplexity and bits per byte of each text (shipped weights, fp32), then a continuation of each prompt.

    Windows are disjoint, 512 tokens, the first token of each unscored. Bits per byte = bits per scored token times the
    tokens per byte of the whole file, a separator counting as the one byte it is there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for path in texts:
        ids = encode(path, model_dir / "tokenizer.json")
        nats = mean_loss(model, torch.from_numpy(ids.astype(np.int64)), batch=8)
        size = len("\x1e".join(documents(path)).encode())
        bits = nats / math.log(2) * len(ids) / size
        print(f"{path.stem}: {len(ids)} tokens, {size} bytes, loss {nats:.4f} nats per token", end=", ")
        print(f"perplexity {math.exp(nats):.3f}, {bits:.4f} bits per byte", flush=True)
    for prompt in prompts:
        torch.manual_seed(0)
        start = torch.tensor([[0, *tokenizer(prompt).input_ids]])
        out = model.generate(start, max_new_tokens=160, do_sample=True, temperature=0.8, top_k=50)
        print("---", tokenizer.decode(out[0, 1:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    job = jobs.add_parser("tokenizer", help="learn the vocabulary")
    job.add_argument("--text", type=Path, required=True)
    job.add_argument("--out", type=Path, required=True)
    job = jobs.add_parser("encode", help="text to token ids")
    job.add_argument("--text", type=Path, required=True)
    job.add_argument("--model", type=Path, required=True, help="directory with tokenizer.json")
    job.add_argument("--out", type=Path, required=True)
    job = jobs.add_parser("train", help="train and export")
    job.add_argument("--ids", type=Path, required=True)
    job.add_argument("--valid", type=Path, nargs="+", required=True)
    job.add_argument("--model", type=Path, required=True, help="directory with tokenizer.json; the export goes there")
    job.add_argument("--device", default="cuda")
    job.add_argument("--steps", type=int, default=10**9)
    job.add_argument("--seconds", type=float, default=1e9)
    job.add_argument("--changes", type=json.loads, default={}, help='of the architecture, e.g. {"hidden_size": 512}')
    for name, default in RECIPE.items():
        job.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    job = jobs.add_parser("evaluate", help="perplexity of the exported weights, and samples")
    job.add_argument("--model", type=Path, required=True)
    job.add_argument("--valid", type=Path, nargs="*", default=[])
    job.add_argument("--prompts", nargs="*", default=["It was", "def "])
    args = parser.parse_args()
    if args.job == "tokenizer":
        train_tokenizer(args.text, args.out)
    elif args.job == "encode":
        np.save(args.out, encode(args.text, args.model / "tokenizer.json"))
    elif args.job == "train":
        train(args)
    else:
        evaluate(args.model, args.valid, args.prompts)


if __name__ == "__main__":
    main()
