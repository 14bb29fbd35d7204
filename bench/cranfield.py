"""Claim: on Cranfield with all-MiniLM-L6-v2 our codes are at least equal (nDCG@10, within the paired interval) to every peer of at
least as many bytes at 8, 4, 2, 1 and 0.5 bits per dimension, and strictly better than some at 1 bit or below.

    make a peer environment as bench/peers/README.md says (cranfield.txt), then
    python bench/cranfield.py --data FOLDER --peer PYTHON          FOLDER: corpus.jsonl, queries.jsonl, qrels.tsv
    --found FILE.npz keeps what the peers found, ten minutes' work, and reads it where it is there

Codecs are fitted on the documents themselves, as FAISS's are. Bytes are those of a stored vector, factors included; the books and
matrices of both sides are left out. JSON to bench/results/.
"""

import argparse
import datetime
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from bitwright.embed import codecs
from bitwright.embed.books import Additive, groups
from bitwright.embed.codec import Codec
from bitwright.embed.index import Index
from bitwright.embed.judging import exact
from bitwright.embed.projections import Dealt
from bitwright.evaluation.retrieval import difference, ndcg, overlap

HERE = Path(__file__).parent
OURS = ("additive", "rotated", "itq", "product")
STARTS, STARTED = 6, ("FAISS OPQ24,PQ24", "ours additive")  # at half a bit: what training finds depends on where it starts


def gains(root: Path) -> list[dict[int, float]]:
    rows = [
        {json.loads(line)["_id"]: i for i, line in enumerate((root / f"{name}.jsonl").read_text().splitlines())}
        for name in ("queries", "corpus")
    ]
    found: list[dict[int, float]] = [{} for _ in rows[0]]
    for line in (root / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        found[rows[0][query]][rows[1][document]] = float(score)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", required=True, help="python of the peers' environment")
    parser.add_argument("--found", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = args.found or Path(folder) / "peers.npz"
        if not out.is_file():
            subprocess.run([args.peer, HERE / "peers" / "cranfield_peers.py", args.data, out], check=True)
        peers = dict(np.load(out))
    x, q, judged = torch.from_numpy(peers.pop("x")), torch.from_numpy(peers.pop("q")), gains(args.data)
    best = exact(x, q, 10, "cosine")
    floats = ndcg(best, judged)
    scores, rows = {}, []
    for bits in (8.0, 4.0, 2.0, 1.0, 0.5):
        for name in OURS:
            index = Index.build(codecs.fit(x, bits, name), x)
            peers[f"{bits:g}|ours {name}|{index.bytes // len(x)}"] = index.search(q, 10, oversample=4.0).ids.numpy()
    nibbles = x.shape[1] // 8
    for start in range(1, STARTS):
        codec = Codec.fit(x, nibbles, Dealt(groups(nibbles, x.shape[1])), Additive(seed=start))
        index = Index.build(codec, x)
        peers[f"0.5|ours additive, start {start}|{index.bytes // len(x)}"] = index.search(q, 10, oversample=4.0).ids.numpy()
    for key, ids in peers.items():
        bits, name, size = key.split("|")
        found = torch.from_numpy(ids).long()
        scores[key] = ndcg(found, judged)
        row = {"bits": float(bits), "name": name, "bytes": int(size), "ndcg": float(scores[key].nanmean())}
        rows.append(row | {"overlap": float(overlap(found, best).mean())})
    rows.sort(key=lambda row: (-row["bits"], -row["overlap"]))
    holds, better = True, False
    for row in rows:
        mine = f"{row['bits']:g}|ours additive|"
        ours = next(value for key, value in scores.items() if key.startswith(mine))
        theirs = scores[f"{row['bits']:g}|{row['name']}|{row['bytes']}"]
        gap = difference(theirs, ours)
        row |= {"ours_minus": [gap.value, gap.low, gap.high]}
        if not row["name"].startswith("ours"):
            holds &= gap.high >= 0
            better |= row["bits"] <= 1 and gap.low > 0
        print(f"{row['bits']:4} {row['name']:40} {row['bytes']:4} bytes  nDCG {row['ndcg']:.4f}  overlap {row['overlap']:.3f}  "
              f"additive minus this {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")  # fmt: skip
    sides = [torch.stack([own for key, own in scores.items() if key.startswith(f"0.5|{name}")]).mean(0) for name in STARTED]
    gap = difference(*sides)
    print(f"over {STARTS} starts each: {' and '.join(f'{name} {side.nanmean():.4f}' for name, side in zip(STARTED, sides))}; "
          f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")  # fmt: skip
    result = {
        "over starts": [gap.value, gap.low, gap.high],
        "float": float(floats.nanmean()),
        "equal": holds,
        "better_below_one_bit": better,
        "rows": rows,
    }
    (HERE / "results" / f"cranfield-{datetime.date.today()}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"float {result['float']:.4f};", "holds" if holds and better else "DOES NOT HOLD")


if __name__ == "__main__":
    main()
