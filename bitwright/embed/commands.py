"""`bitwright index`: build, add, remove, search, train, evaluate, check, convert, inspect. Thin; heavy imports happen inside."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright import console
from bitwright.embed.engines import ENGINES
from bitwright.errors import BadRequest, BrokenPromise

if TYPE_CHECKING:
    from bitwright.embed.index import Index

app = typer.Typer(
    no_args_is_help=True,
    help="Vectors as codes: a file that is searched as it lies.",
    epilog="INPUT is .npy, .safetensors or .parquet with a vector per row, or .jsonl or .txt with a document per line and --model.",
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="A file of codes.")]
Input = Annotated[Path, typer.Argument(metavar="INPUT", help="Vectors or text.")]
Encoder = Annotated[str | None, typer.Option("--model", help="Folder of a sentence-transformers model, for text.")]
Bits = Annotated[float, typer.Option(help="Bits per dimension, 0.25 to 8.")]
MetricName = Annotated[str, typer.Option(help="cosine, or ip for inner products.")]
Many = Annotated[int, typer.Option("-k", min=1, help="Documents per query.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
PART = 1 << 16


@app.command()
def build(
    input: Input,
    out: Annotated[Path, typer.Option("-o", "--out", help="File of codes to write.")],
    bits: Bits = 1.0,
    codec: Annotated[
        str, typer.Option(help="additive, rotated, uniform, itq, product, residual; bebr is trained, for minutes.")
    ] = "additive",
    metric: MetricName = "cosine",
    model: Encoder = None,
    sample: Annotated[int, typer.Option(min=16, help="Vectors that the codec is fitted on.")] = 65536,
    cells: Annotated[int, typer.Option(min=0, help="Divide the documents into so many cells; 0: every query looks at all.")] = 0,
    probes: Annotated[int, typer.Option(min=1, help="Cells that a query looks into.")] = 8,
    measure: Annotated[bool, typer.Option(help="Measure what a search of the codes keeps of a float search.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Fit a codec on a sample of the vectors, encode all of them, write one file."""
    from bitwright.embed import codecs, curve
    from bitwright.embed.index import Index
    from bitwright.embed.sources import read

    if out.exists() and not overwrite:
        raise BadRequest(f"{out} is there already; choose another name or pass --overwrite.")
    with console.progress() as progress:
        source = read(input, model, progress)
        some = source.sample(sample)
        index = Index.empty(codecs.fit(some, bits, codec, progress, metric=metric))
        about: dict[str, Any] = {"model": model or "", "fitted_on": hashlib.sha256(some.numpy().tobytes()).hexdigest()[:16]}
        fill(index, source, progress)
    if measure:
        about["measured"] = curve.measured(index.codec, source, sample)
    index.about = about
    if cells:
        index.divide(cells, probes)
    index.save(out)
    told(index, out)
    if measure:
        console.out.print(curve.said(about["measured"]))


def fill(index: "Index", source: Any, progress: Any) -> None:
    done = 0
    for x, ids in source.parts(PART):
        try:
            index.add(x, ids)
        except BadRequest as error:
            raise BadRequest(f"From row {done} of the input on: {error}" if done else str(error)) from None
        progress("encoding", done := done + len(x), len(source))


def told(index: "Index", path: Path) -> None:
    each = index.bytes / max(1, len(index))
    console.out.print(f"{path}: {len(index):,} vectors of {index.codec.dim} dimensions, {index.codec.name}, {each:.1f} bytes each, "
                      f"{4 * index.codec.dim / each:.1f} times smaller than fp32; space {index.codec.space_id}")  # fmt: skip


@app.command()
def add(file: File, input: Input, model: Encoder = None) -> None:
    """Encode more vectors with the codec of the file; the file is replaced whole."""
    from bitwright.embed.index import Index
    from bitwright.embed.sources import read

    with console.progress() as progress:
        index, source = Index.open(file), read(input, model, progress)
        fill(index, source, progress)
    index.save(file)
    told(index, file)


@app.command()
def remove(file: File, ids: Annotated[list[str], typer.Argument(help="Ids of documents.")]) -> None:
    """Take documents out. Where one is not there, nothing is removed."""
    from bitwright.embed.index import Index

    index = Index.open(file)
    index.remove(index.ids_of(ids))
    index.save(file)
    told(index, file)


@app.command()
def search(
    file: File,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A text, or a file of vectors.")],
    k: Many = 10,
    oversample: Annotated[
        float, typer.Option(min=1, help="Candidates per document asked for, scored again from their codes.")
    ] = 4.0,
    probes: Annotated[int | None, typer.Option(min=1, help="Cells looked into, where the file has cells.")] = None,
    model: Encoder = None,
    as_json: Json = False,
) -> None:
    """The nearest documents of every query: ids and scores on the scale of the vectors."""
    from bitwright.embed.index import Index

    index = Index.open(file)
    hits = index.search(asked(query, model or own_model(index)), k, oversample, probes=probes)
    documents = [index.texts_of(row[row >= 0]) for row in hits.ids]
    if as_json:
        each = hits.ids.tolist() if index.texts is None else documents
        rows = [{"ids": i, "scores": s[: len(i)]} for i, s in zip(each, hits.scores.tolist())]
        print(json.dumps({"hits": rows, "visited": hits.visited, "bytes_read": hits.bytes_read}))
        return
    for i, (ids, scores) in enumerate(zip(documents, hits.scores.tolist())):
        console.out.print(f"query {i}: " + "  ".join(f"{d} ({s:.3f})" for d, s in zip(ids, scores)))
    console.out.print(f"{hits.visited:,} documents looked at, {hits.bytes_read:,} bytes read per pass")


def own_model(index: "Index") -> str | None:
    """That its documents were encoded with."""
    return str((index.about or {}).get("model") or "") or None


def asked(query: str, model: str | None) -> Any:
    from tempfile import TemporaryDirectory

    from bitwright.embed.sources import read

    if Path(query).is_file():
        source = read(Path(query), model)
        return source[slice(0, len(source))]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "query.txt"
        path.write_text(" ".join(query.split()))
        return read(path, model)[slice(0, 1)]


@app.command()
def train(
    file: File,
    queries: Annotated[Path, typer.Option(help="Vectors or text of queries that are like those to come.")],
    qrels: Annotated[Path, typer.Option(help="Their answers: query-id, corpus-id, score, tab separated; an id may be a row.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File of codes to write; FILE stays as it is.")],
    steps: Annotated[int, typer.Option(min=1, help="Batches of 32 queries to learn from.")] = 500,
    model: Annotated[str | None, typer.Option(help="Folder of the queries' model, for text; else the one named in FILE.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Learn from queries with known answers. The codes of FILE stay; where their points lie, and how a query is turned before it
    meets them, moves until answers come first. A fifth of the queries is held out and says what was gained; exit code 3, and
    nothing is written, where that is nothing."""
    from bitwright.embed import table
    from bitwright.embed.answered import learn
    from bitwright.embed.index import Index
    from bitwright.embed.sources import read
    from bitwright.training.loop import Training

    if out.exists() and not overwrite:
        raise BadRequest(f"{out} is there already; choose another name or pass --overwrite.")
    index = Index.open(file)
    with console.progress() as progress:
        asking = read(queries, model or own_model(index), progress)
        gains = table.gains(qrels, index.texts_of(index.names), table.names(asking))
        found = learn(index, asking[slice(0, len(asking))], gains, how=Training(steps=steps, warm=0.05), progress=progress)
    if found.gain.value <= 0:
        raise BrokenPromise(f"Nothing was gained ({found.said()}) and nothing written; give more queries, or keep {file}.")
    found.index.save(out)
    console.out.print(f"{found.said()}.")
    told(found.index, out)


@app.command()
def evaluate(
    input: Input,
    queries: Annotated[Path, typer.Option(help="Vectors or text of queries.")],
    qrels: Annotated[Path | None, typer.Option(help="Judgements: query-id, corpus-id, score, tab separated.")] = None,
    bits: Annotated[str, typer.Option(help="Bits per dimension, as a list.")] = "0.5,1,2,4,8",
    codecs: Annotated[str, typer.Option(help="Codecs to compare, as a list.")] = "additive,rotated,itq",
    k: Many = 10,
    metric: MetricName = "cosine",
    model: Encoder = None,
    page: Annotated[Path | None, typer.Option("-o", "--page", help="Write it as a page as well: one HTML file.")] = None,
    as_json: Json = False,
) -> None:
    """What each codec keeps of a float search, on your vectors, and which one to take."""
    from bitwright.embed import table
    from bitwright.embed.judging import judge
    from bitwright.embed.sources import read

    with console.progress() as progress:
        documents, asking = (read(path, model, progress) for path in (input, queries))
        gains = None if qrels is None else table.gains(qrels, *map(table.names, (documents, asking)))
        x, q = (source[slice(0, len(source))] for source in (documents, asking))
        found = judge(x, q, table.numbers(bits), codecs.split(","), gains, k, metric, progress=progress)  # type: ignore[arg-type]
    if page is not None:
        from bitwright.page import searches

        try:
            page.write_text(searches.render(found, input.name, queries.name))
        except OSError as error:
            raise BadRequest(f"Cannot write {page}: {error.strerror}; choose another place.") from None
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        table.show(found, console.out)


@app.command()
def check(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Files of codes, several to be mixed.")] = None,
    codes: Annotated[
        Path | None, typer.Option(help="Codes of another tool: .npy of packed bits or int8, a row per vector.")
    ] = None,
    vectors: Annotated[Path | None, typer.Option(help="The vectors that were coded, in the order of the codes.")] = None,
    queries: Annotated[Path | None, typer.Option(help="Vectors of queries; some of the vectors where none are given.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Scores made from the codes: .npy, a row per query.")] = None,
    metric: Annotated[str | None, typer.Option(help="cosine or ip: what the scores are meant to be.")] = None,
    k: Many = 10,
    as_json: Json = False,
) -> None:
    """Why did recall fall? Known faults of codes, each with its cause and its remedy; exit code 3 where one is found."""
    from dataclasses import asdict

    from bitwright.embed import checking, table
    from bitwright.embed.cases import given

    found = checking.of_files(files or [])
    if vectors is not None or not files:
        found += checking.check(given(files[0] if files else None, codes, vectors, queries, scores, metric, k))
    if as_json:
        print(json.dumps([asdict(verdict) for verdict in found], indent=1))
    else:
        table.verdicts(found, console.out)
    faults = [verdict.test for verdict in found if verdict.state == "fault"]
    if faults:
        raise BrokenPromise(
            f"{len(faults)} of {len(found)} tests found a fault ({', '.join(faults)}); the verdicts say what to do."
        )


@app.command()
def convert(
    file: File,
    to: Annotated[str, typer.Option("--to", metavar="ENGINE", help=f"One of {', '.join(ENGINES)}.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File or folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what bitwright wrote there.")] = False,
) -> None:
    """The same codes for a search engine, where it can hold them; a sentence where it cannot, and nothing is written."""
    from bitwright.embed.engines.writing import write
    from bitwright.embed.index import Index

    with console.progress() as progress:
        said = write(Index.open(file), to, out, overwrite, progress)
    console.out.print(f"{out}: {said}")
    console.out.print(f"Queries: codec = bitwright.Index.open({str(file)!r}).codec; from bitwright.embed.engines import contents")


@app.command()
def inspect(file: File, as_json: Json = False) -> None:
    """What a file of codes says of itself."""
    from bitwright.embed.codefile import CodeFile

    found = CodeFile.open(file)
    if as_json:
        print(json.dumps(found.header(), indent=1))
        return
    for name, value in found.header().items():
        console.out.print(f"{name:10} {value}")
