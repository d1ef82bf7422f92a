"""Scripts in forks of a process that has imported what they need, which saves each the seconds of its imports."""

import contextlib
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from absl import flags

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_script(path: str | os.PathLike, *arguments: str, anew: bool = False) -> int:
    """
    Run a script in a fork of this process, which has what this one has imported.

    SIGTERM is passed on to the script; Ctrl-C a terminal sends to both, and this process leaves it to the script.

    :param path: its file.
    :param arguments: its flags.
    :param anew: start Python anew in the fork: nothing is shared with this process, as CUDA needs it.
    :return: its exit status; where a signal has killed it, 128 and the signal's number, as a shell gives it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that comes meanwhile waits until this process can pass it on.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    pid = os.fork()
    if pid == 0:
        if anew:
            start_anew(path, arguments)
        become(path, arguments)

    passed_on: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed_on.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    # The script ends by itself on these; then what called this function ends too, by the script's status.
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        _, ended = os.waitpid(pid, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    status = os.waitstatus_to_exitcode(ended)
    if passed_on and status == 0:
        # It came when the script was done, and stops what would follow.
        return 128 + passed_on[0]
    return 128 - status if status < 0 else status


def start_anew(path: str | os.PathLike, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by a new Python that runs the script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        os.execv(sys.executable, [sys.executable, str(path), *arguments])
    except OSError:
        traceback.print_exc()
    os._exit(1)


def become(path: str | os.PathLike, arguments: Sequence[str]) -> NoReturn:
    """Run a script in this process, which ends with the script's exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    # A script defines its flags anew.
    flags.FLAGS.remove_flag_values([flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])])
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(Path(path).parent))
    status = 1
    try:
        runpy.run_path(str(path), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
