"""The scripts in processes of their own, as if started anew but for the seconds that imports take: hundreds of runs."""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

from cnn_gp.script_process import become

from .paths import ROOT
from .waiting import PATIENCE

# The server does nothing but import and fork: unlike this process it has no threads.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["helpers.preloaded"])


def _start_server() -> None:
    """The server finds what it is to import by PYTHONPATH only, and says nothing where it doesn't."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    status: int | None
    """Its exit status; minus the number of the signal that killed it; None where it had to be killed in the end."""
    stdout: str
    stderr: str

    @property
    def is_one_line(self) -> bool:
        """Whether it refused, with one line on standard error."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return self.status in (1, 3) and len(lines) == 1 and lines[0].startswith("error: ")


def run_forked(name: str, *flags: object, seconds: float = PATIENCE, before: Callable[[], None] | None = None) -> Ended:
    """
    Run ``scripts/NAME.py``.

    :param seconds: after which it is killed.
    :param before: called in the new process first, to break things there; it must pickle.
    """
    _start_server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _CONTEXT.Process(target=_run, args=(name, [str(flag) for flag in flags], out, err, before))
        process.start()
        process.join(seconds)
        hangs = process.is_alive()
        process.kill()
        process.join()
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
        return Ended(None if hangs else process.exitcode, *texts)


def _run(name: str, flags: list[str], out: Path, err: Path, before: Callable[[], None] | None) -> None:
    for path, number in ((out, 1), (err, 2)):
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    try:
        if before is not None:
            before()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    become(ROOT / "scripts" / f"{name}.py", flags)
