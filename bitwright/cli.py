"""The command line. Every command is a thin layer over the library; heavy imports happen inside the command that needs them."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from bitwright import console, index
from bitwright.embed.commands import app as index_app
from bitwright.errors import BadRequest, Decoded

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Make neural networks small: fewer stored bits, the same behaviour, a report that does not flatter.",
    epilog="Start with [b]bitwright demo[/b]. MODEL is a hub id, a Hugging Face directory, or [b]zoo:lm[/b] (ships inside).",
)

app.add_typer(index_app, name="index")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, Hugging Face directory, or zoo:lm.")]
Data = Annotated[
    str, typer.Option(help="Text: stdlib, a file, a directory, hub:name:config:split:column; images: a file or a folder.")
]
Samples = Annotated[int, typer.Option(min=1, help="Calibration windows, or images.")]
Length = Annotated[int, typer.Option(min=2, help="Tokens in a window.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the small model and its report go.")] = Path("demo-out"),
    bits: Annotated[int, typer.Option(min=1, max=8, help="Bits per code.")] = 4,
) -> None:
    """The main job on the built-in model: compress zoo:lm, measure it, end with the table and the page. Minutes on two cores."""
    compress("zoo:lm", out, recipe="best", bits=bits, group=64, overwrite=True, judge=True)


@app.command()
def compress(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory to write.")],
    recipe: Annotated[str, typer.Option(help="A name (see `bitwright list recipes`) or a .toml or .json file.")] = "best",
    bits: Annotated[int | None, typer.Option(min=1, max=8, help="Bits per code, scales not counted.")] = None,
    budget: Annotated[float | None, typer.Option(help="Stored bits per weight of the linears, everything counted.")] = None,
    size: Annotated[str | None, typer.Option(help="Size of all tensors on disk, such as 12MB or 3.5GiB.")] = None,
    kl: Annotated[float | None, typer.Option(help="The smallest model whose held-out KL stays below, in nats.")] = None,
    allocation: Annotated[str | None, typer.Option(help="How a budget is spent: see `bitwright list allocation`.")] = None,
    menu: Annotated[str | None, typer.Option(help="Recipes to choose from, matrix by matrix, such as Q3_K,Q4_K,Q6_K.")] = None,
    group: Annotated[int | None, typer.Option(help="Weights that share a scale; 0: the whole row.")] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="An option of the recipe, as name=value.")] = None,
    data: Data = "stdlib",
    samples: Samples = 128,
    length: Length = 512,
    ignore: Annotated[list[str] | None, typer.Option(help="Leave these layers as they are: a name, or re:REGEX.")] = None,
    head: Annotated[bool, typer.Option("--head", help="Also compress the embedding and the output head.")] = False,
    stats: Annotated[Path | None, typer.Option(help="Folder of stored statistics: filled once, read by later runs.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Calibration rows per forward pass.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    to: Annotated[str, typer.Option("--format", help="Format to write: see `bitwright list formats`.")] = "native",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with unfinished work in OUT.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a layer that the groups do not divide.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written and needed; write nothing.")] = False,
    judge: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="Measure the result against MODEL.")] = False,
    as_json: Json = False,
) -> None:
    """Compress MODEL into OUT, block by block, and report what it costs."""
    from bitwright import table
    from bitwright.allotting import allotted
    from bitwright.calibrate.drawn import drawn
    from bitwright.checkpoint import size_in_bytes
    from bitwright.choosing import choose, spending
    from bitwright.job import Job, choose_device

    chosen = choose(model, recipe, bits, group, option or [], ignore or [], head, budget)
    if size is not None:
        chosen = Job.of(model, chosen, None, strict=strict, form=to).plan.within(size_in_bytes(size))
    chosen = spending(chosen, allocation, menu, kl)
    job = Job.of(model, chosen, None, strict=strict, form=to)
    if dry_run:
        return table.plan(job.plan, samples * length, console.out, as_json)
    needs = (*job.plan.recipe.needs, *((job.recipe.allocation and job.recipe.allocation.probe and ["gram"]) or ()))
    rows = drawn(model, data, samples, length, "calibration") if needs else None
    job = Job.of(model, chosen, rows, strict=strict, form=to)
    where = choose_device(device)
    with console.progress() as bar, allotted(job, stats, batch, where, bar) as (job, stats):
        report = job.run(job.road(out, stats, batch, where, bar), resume, overwrite)
    finish(out, report, model if judge else None, data, as_json)


def finish(out: Path, report: Any, model: str | None, data: str, as_json: bool) -> None:
    """Measure if asked, write the report page beside the weights, print the table."""
    if model is not None:
        from bitwright.calibrate.drawn import of_images
        from bitwright.measuring import measure

        held_out = data if of_images(model) else "stdlib"
        report = report.with_scores(measure(str(out), model, held_out, None, 512).to_json())
        report.write(out)
    from bitwright import page, table

    (out / "report.html").write_text(page.render(report))
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
        return
    table.show(report, console.out)
    console.out.print(f"\nModel:  {out}\nReport: {out / 'report.html'}")


@app.command()
def evaluate(
    model: Model,
    against: Annotated[str | None, typer.Option(help="The model it was made from: gives KL, flips, noise floor.")] = None,
    data: Data = "stdlib",
    samples: Annotated[int | None, typer.Option(min=1, help="Windows (96), or images (2000).", show_default=False)] = None,
    length: Length = 512,
    file: Annotated[Path | None, typer.Option("--json", help="Also write the scores to this file.")] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens per second instead, beside --against.")] = False,
    bits: Annotated[int | None, typer.Option(help="The width at which a model that serves several is measured.")] = None,
    device: Annotated[str, typer.Option(help="Where --speed runs the models: auto, cpu or cuda.")] = "cpu",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a layer whose products have no kernel here.")] = False,
    size: Annotated[str | None, typer.Option(help="Of a stack, measure what fits, such as 9MB.")] = None,
) -> None:
    """Perplexity of MODEL; with --against, KL with tails, flips, intervals and the noise floor."""
    if strict:
        warnings.simplefilter("error", Decoded)
    from bitwright import page, table
    from bitwright.measuring import measure, measure_speed
    from bitwright.report import Report

    if speed:
        found = measure_speed(model, against, device)
        if file is not None:
            file.write_text(json.dumps(found, indent=1))
        return table.speeds(found, console.out)
    scores = measure(model, against, data, samples, length, size, bits).to_json()
    if file is not None:
        file.write_text(json.dumps(scores, indent=1))
    if size is None and bits is None and (Path(model) / "bitwright.json").is_file():
        report = Report.read(model).with_scores(scores)
        report.write(Path(model))
        (Path(model) / "report.html").write_text(page.render(report))
        table.show(report, console.out)
        console.out.print(f"\nReport: {Path(model) / 'report.html'}")
        return
    table.scores(scores, console.out)


@app.command()
def compare(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory for the small models and the table.")],
    recipes: Annotated[str, typer.Option(help="Names, separated by commas; empty: none.")] = "rtn,gptq,best",
    bits: Annotated[str | None, typer.Option(help="Bits per code, separated by commas; 2,3,4 where there are no budgets.")] = None,
    budgets: Annotated[str | None, typer.Option(help="Stored bits per weight that are spent, such as 2,2.25,2.5,3.")] = None,
    allocation: Annotated[str | None, typer.Option(help="How budgets are spent: see `bitwright list allocation`.")] = None,
    group: Annotated[int | None, typer.Option(help="Weights that share a scale; 0: the whole row.")] = 64,
    also: Annotated[list[Path] | None, typer.Option("--with", help="A compressed model made from MODEL by any tool.")] = None,
    data: Data = "stdlib",
    samples: Samples = 128,
    length: Length = 512,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
) -> None:
    """Several recipes on one model, and models that are there already: one table and one page, by stored bits."""
    from bitwright import table
    from bitwright.choosing import rivals
    from bitwright.measuring import compared

    chosen = rivals(model, recipes, bits, budgets, allocation, group)
    reports = compared(model, chosen, also or [], out, data, samples, length, overwrite)
    table.compare(reports, console.out)
    (out / "compare.json").write_text(json.dumps([r.to_dict() for r in reports], indent=1))


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A compressed model, of any format that is known.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory to write.")],
    to: Annotated[str, typer.Option("--to", help="Format to write: see `bitwright list formats`.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
) -> None:
    """The same codes in another format, where it can hold them exactly; a sentence where it cannot, and nothing is written."""
    from bitwright.convert import convert as run

    with console.progress() as bar:
        remarks = run(model, to, out, overwrite, bar)
    for remark in remarks:
        console.out.print(f"  {remark}")
    console.out.print(f"Written and read back: {out}")


@app.command()
def load(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A compressed model that serves several sizes or widths.")],
    size: Annotated[str | None, typer.Option(help="Of a stack (recipe bitstack): what fits into, such as 9MB.")] = None,
    bits: Annotated[int | None, typer.Option(help="Of nested codes (recipe double-rounding): the width.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write what was loaded as a model of its own.")] = None,
    to: Annotated[str, typer.Option("--to", help="Format to write: see `bitwright list formats`.")] = "native",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
) -> None:
    """One of the sizes or widths that a model serves: load it, say what it is, and write it where asked."""
    from bitwright.narrow import load as run

    with console.progress() as bar:
        console.out.print(run(model, size, bits, out, to, overwrite, bar))


@app.command()
def sensitivity(
    model: Model,
    weights: Annotated[str, typer.Option(help="Bits of weights, separated by commas.")] = "8,4,3",
    inputs: Annotated[str, typer.Option(help="Bits of the matrices' inputs, separated by commas.")] = "8",
    group: Annotated[int, typer.Option(help="Weights that share a scale; 0: the whole row.")] = 64,
    data: Data = "stdlib",
    samples: Samples = 32,
    length: Length = 512,
    as_json: Json = False,
) -> None:
    """What quantizing weights, inputs, or both by plain rounding does to perplexity, and its class (1 to 3)."""
    from bitwright import table
    from bitwright.sensitivity import sensitivity as run
    from bitwright.sensitivity import to_json

    with console.progress() as bar:
        found = run(model, whole_numbers(weights), whole_numbers(inputs), group or None, data, samples, length, bar)
    if as_json:
        print(json.dumps(to_json(found), indent=1))
    else:
        table.sensitivity(found, console.out)


def whole_numbers(text: str) -> list[int]:
    """Raises BadRequest where one is none."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadRequest(f"{text!r} is no list of whole numbers; write them like 8,4.") from None


@app.command()
def inspect(directory: Annotated[Path, typer.Argument(help="A compressed model.")], as_json: Json = False) -> None:
    """The ledger: every tensor of a compressed model, its type, shape and bytes, and that they add up."""
    from bitwright import table
    from bitwright.ledger import ledger

    found = ledger(directory)
    if as_json:
        print(json.dumps([entry.__dict__ for entry in found], indent=1))
    else:
        table.ledger(found, console.out)


@app.command(name="list")
def list_parts(
    room: Annotated[str, typer.Argument(help="recipes, grids, rounding, ... (empty: the rooms)")] = "",
) -> None:
    """What there is: recipes, grids, fits, roundings, corrections, allocations."""
    rooms = {"recipes": index.RECIPES, "formats": index.FORMATS, **index.PARTS}
    if room and room not in rooms:
        raise BadRequest(f"There is no room {room!r}; choose one of {', '.join(rooms)}.")
    if not room:
        for name, parts in rooms.items():
            console.out.print(f"{name:12} {', '.join(parts)}")
        return
    for name, path in rooms[room].items():
        module = sys.modules.get(path.split(":")[0]) or __import__(path.split(":")[0], fromlist=["_"])
        first = (module.__doc__ or "").strip().split("\n\n")[0]
        console.out.print(f"[b]{name}[/b]\n  {' '.join(first.split())}", soft_wrap=False)


def main() -> None:
    sys.exit(console.ends(app))


if __name__ == "__main__":
    main()
