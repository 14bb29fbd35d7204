"""The report in a terminal: plain tables that fit 80 columns, are readable without colour and survive a pipe.

show      what a report says, block by block        sites     every matrix
scores    what `evaluate` found                     compare   several reports, by size
speeds    what `evaluate --speed` found
ledger    every stored tensor of a directory           plan      what a dry run says
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitwright.page import front, summary, words
from bitwright.report import Report

if TYPE_CHECKING:
    from bitwright.export.base import Entry
    from bitwright.plan import Plan

MOST, MOST_NOTES = 40, 12  # blocks, and notes, that are listed one by one


def plan(found: "Plan", tokens: int, console: Console, as_json: bool = False) -> None:
    """What a run would write and need; `tokens` of calibration."""
    weights = sum(p.shape[0] * p.shape[1] for p in found.sites.values())
    told: dict[str, Any] = {
        "bytes": found.bytes,
        "bpw_linears": sum(p.bits for p in found.sites.values()) / weights,
        "peak_bytes": found.peak(tokens if found.recipe.needs else 0),
        "matrices": len(found.sites),
        "fallbacks": {name: p.note for name, p in found.sites.items() if p.note},
    }
    if as_json:
        print(json.dumps(told, indent=1))
        return
    console.print(
        f"Would write {told['bytes']:,} bytes: {told['matrices']} matrices at {told['bpw_linears']:.3f} bits per weight, "
        f"{sum(found.kept.values()):,} bytes kept as they are. Peak memory about {told['peak_bytes'] / 2**20:,.0f} MiB."
    )
    for name, note in told["fallbacks"].items():
        console.print(f"  {name}: {note}")


def show(report: Report, console: Console | None = None) -> None:
    """Totals, blocks, scores with their verdict, fallbacks. Models of more than 40 blocks: every n-th of them."""
    out = console or Console(highlight=False)
    asked = report.asked
    say(out, f"{asked['model']}, compressed with {words.recipe(asked)['name']}", "bold")
    for what, said in words.described(asked):
        say(out, f"{what}: {said}", indent=2)
    totals(report, out)
    found = summary.blocks(report)
    every = -(-len(found) // MOST) or 1
    rows_table(found[::every], out, "block")
    if every > 1:
        say(out, f"One of {every} blocks is listed; the model has {len(found)}.")
    if report.scores is None:
        say(out, f"Behaviour not measured: bitwright evaluate OUT --against {asked['model']}")
    else:
        scores(report.scores, out)
    remarks = summary.remarks(report)
    say(out, f"Fallbacks and notes: {len(remarks) or 'none'}", "bold")
    for note in remarks[:MOST_NOTES]:
        say(out, note, indent=2)
    if len(remarks) > MOST_NOTES:
        say(out, f"and {len(remarks) - MOST_NOTES} more, which the page and bitwright.json list", indent=2)
    say(out, f"Time {words.duration(report.seconds)}, peak memory {words.size(report.peak)}")


def sites(report: Report, console: Console | None = None) -> None:
    """Every compressed matrix."""
    rows_table([summary.Sum(row.name, (row,)) for row in report.rows], console or Console(highlight=False), "matrix")


def speeds(found: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """What `evaluate --speed` found, the original first."""
    out = console or Console(highlight=False)
    first = next(iter(found.values()))
    table = grid("model", "reading, tokens/s", "writing, tokens/s", "MB per token")
    for name, speed in found.items():
        pace = f"{speed['writing']:,.0f}" + (f" ({speed['writing'] / first['writing']:.2f}x)" if speed is not first else "")
        table.add_row(name, f"{speed['reading']:,.0f}", pace, f"{speed['bytes_per_token'] / 1e6:,.2f}")
    out.print(table)
    say(out, f"One token at a time on {first['device']}, {first['threads']} threads, both models in turn.")


def sensitivity(found: Sequence[Any], console: Console | None = None) -> None:
    """What `sensitivity` found: settings, the original first."""
    table = grid("weights, bits", "inputs, bits", "perplexity", "rise", "class")
    for one in found:
        wide = ["as they are" if bits == 16 else str(bits) for bits in (one.weights, one.inputs)]
        table.add_row(*wide, f"{one.perplexity:.3f}", f"{one.rise:+.3f}", str(one.quality))
    (console or Console(highlight=False)).print(table)


def scores(found: Mapping[str, Any], console: Console | None = None) -> None:
    """What `evaluate` found, as the plain dict that lies in a report."""
    out = console or Console(highlight=False)
    ppl, distance, floor = found["perplexity"], found["divergence"], found["floor"]
    table = grid("measured", "value", "95 % interval")
    if ppl["base"]:
        line(table, "perplexity before", ppl["base"])
    line(table, f"perplexity ({ppl['protocol']})", ppl["other"])
    if ppl["ratio"]:
        line(table, "ln ratio, nats", ppl["ratio"])
    rates = [words.number(ppl[k]) for k in ("bits_per_byte_base", "bits_per_byte") if ppl[k] is not None]
    table.add_row("bits per byte", " to ".join(rates), "")
    if distance:
        line(table, "KL mean, nats", distance["kl"])
        for name, score in distance["ladder"].items():
            line(table, f"KL {name}{' %' if name[0].isdigit() else ''}, nats", score)
        if floor:
            table.add_row("KL noise floor, nats", words.number(floor["kl"]), "")
        line(table, "same first choice", distance["same_top"], words.percent)
        line(table, "delta p mean", distance["delta_p_mean"], words.percent)
        line(table, "delta p rms", distance["delta_p_rms"], words.percent)
    out.print(table)
    if found["tasks"]:
        out.print(tasks(found["tasks"]))
    for doubt in summary.doubts(found):
        say(out, f"Read with care: {doubt}")
    if found["verdict"]:
        say(out, f"Verdict: {found['verdict']['sentence']}", "bold")


def compare(reports: Sequence[Report], console: Console | None = None) -> None:
    """One row for each report, the smallest first, and whether any other is both as small and as near to the original."""
    out, ordered = console or Console(highlight=False), sorted(reports, key=lambda report: report.bytes)
    best, mark = front.front(ordered), {True: "* ", False: "", None: ""}
    cost = ("bits per\nweight", "over\nall", "size")
    found = ("KL mean, nats\n(95 %)", "KL\n99.9 %", "same\nfirst", "PPL")
    table = grid("recipe,\nlevels", *cost, *found, "s")
    table.columns[4].no_wrap = True
    for report, on in zip(ordered, best):
        size = (words.number(report.bpw_linears), words.number(report.bpw_everything), words.size(report.bytes))
        loss, *others = quality(report.scores)
        table.add_row(Text(words.title(report.asked)), *size, mark[on] + loss, *others, f"{report.seconds:,.0f}")
    out.print(table)
    if True in best:
        say(
            out,
            "* on the front: no other is as small and as near to the original, and better in one of the two. "
            f"Dominated: {best.count(False)} of {len(best)}.",
        )


def ledger(entries: Sequence["Entry"], console: Console | None = None) -> None:
    """Every stored tensor, and their sum."""
    out = console or Console(highlight=False)
    table = grid("tensor", "type", "shape", "bytes")
    for entry in entries:
        table.add_row(Text(entry.name), entry.dtype, " x ".join(map(str, entry.shape)), f"{entry.bytes:,}")
    out.print(table)
    coded = sum(entry.bytes for entry in entries if entry.site)
    whole = sum(entry.bytes for entry in entries)
    say(out, f"{len(entries):,} tensors, {whole:,} bytes. They add up to what the report says:")
    say(out, f"{coded:,} of compressed matrices, {whole - coded:,} kept as they were.", indent=2)


def totals(report: Report, out: Console) -> None:
    table = grid("stored", "matrices", "weights", "bytes", "share", "bits per\nweight")
    found = summary.roles(report)
    coded = sum(s.weights for s in found)

    def add(name: str, matrices: str, weights: int, size: int, style: str = "") -> None:
        rate = words.number(8 * size / weights) if weights else ""
        share = words.percent(size / report.bytes) if size <= report.bytes else ""
        table.add_row(name, matrices, f"{weights:,}", f"{size:,}", share, rate, style=style)

    for s in found:
        add(s.name, f"{len(s.rows):,}", s.weights, s.bits // 8)
    add("kept as they were", "", report.weights - coded, report.kept)
    table.add_section()
    add("compressed matrices", f"{len(report.rows):,}", coded, report.bytes - report.kept)
    add("everything", "", report.weights, report.bytes, "bold")
    add("before", "", report.weights, report.original)
    out.print(table)
    smaller = words.number(report.original / report.bytes)
    say(out, f"{words.size(report.original)} to {words.size(report.bytes)}: {smaller} times smaller", "bold")


def rows_table(found: Sequence[summary.Sum], out: Console, what: str) -> None:
    """Errors are means over the matrices of a line; `ratio` is the geometric mean of error over nearest's."""
    table = grid(what, "bits per weight", "error", "nearest", "ratio", "seconds")
    for s in found:
        ratio = words.number(summary.typical(summary.ratios(s.rows)))
        errors = words.percent(s.error), words.percent(s.nearest)
        table.add_row(Text(s.name), words.number(s.bpw), *errors, ratio, words.number(s.seconds))
    out.print(table)
    output = any(row.measure == "output" for s in found for row in s.rows)
    of = "output energy" if output else "squared weights"
    say(out, f"error: share of a matrix's {of} that is lost; nearest: the same by nearest rounding")


def tasks(found: Sequence[Mapping[str, Any]]) -> Table:
    table = grid("task", "items", "before", "after", "flips", "all flips", "p (Holm)")
    for task in found:
        flips = task["flips"]
        if flips is None:
            table.add_row(Text(task["name"]), f"{task['n']:,}", "", words.percent(task["accuracy"]), "", "", "")
            continue
        shares = map(words.percent, (flips["accuracy_base"], task["accuracy"], flips["flips"], flips["all_flips"]))
        chance = f"{words.probability(flips['p'])} ({words.probability(flips['holm'])})"
        table.add_row(Text(task["name"]), f"{task['n']:,}", *shares, chance)
    return table


def quality(found: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    """KL with its interval, its 99.9th percentile, same first choice, perplexity; empty where not measured."""
    if found is None:
        return "", "", "", ""
    ppl, distance = words.number(found["perplexity"]["other"]["value"]), found["divergence"]
    if distance is None:
        return "", "", "", ppl
    kl = f"{words.number(distance['kl']['value'])}\n({words.interval(distance['kl']).replace(' to ', '-')})"
    return kl, words.number(distance["ladder"]["99.9"]["value"]), words.percent(distance["same_top"]["value"]), ppl


def grid(first: str, *others: str) -> Table:
    """A table with its first column to the left, numbers to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def line(table: Table, name: str, score: Mapping[str, Any], write: Any = words.number) -> None:
    table.add_row(name, write(score["value"]), words.interval(score, write))


def say(out: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Text from models and files: never read as markup."""
    out.print(Text(" " * indent + text, style=style))
