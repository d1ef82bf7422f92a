"""What the scripts share: how they start, and how they end."""

import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from absl import app, flags

from .errors import UserError


class Terminated(BaseException):
    """SIGTERM, as an exception: what is under way is ended as for Ctrl-C."""


def run(main: Callable[[], None]) -> None:
    """
    Run a script's main function after parsing the flags.

    A user's mistake ends in one line on standard error and that error's exit status; Ctrl-C in 130, SIGTERM in 143.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    def wrapped(argv: Sequence[str]) -> None:
        signal.signal(signal.SIGTERM, terminate)
        try:
            if len(argv) > 1:
                raise UserError(f"{argv[1]!r} isn't a flag; expected flags of the form --name=value: see --help.")
            main()
        except UserError as error:
            sys.stdout.flush()
            # A name that was given may hold a line's end.
            print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
            sys.exit(error.exit_status)
        except BrokenPipeError:
            # As with `| head`. The interpreter's last flush would fail too.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print("stopped: the program that read the output has ended; what was finished is kept.", file=sys.stderr)
            sys.exit(1)
        except (KeyboardInterrupt, Terminated) as stop:
            sys.stdout.flush()
            print("stopped: what was finished is kept; start again with the same flags to go on.", file=sys.stderr)
            sys.exit(130 if isinstance(stop, KeyboardInterrupt) else 143)

    app.run(wrapped, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        for flag in flags.FLAGS.get_key_flags_for_module(argv[0]):
            if flag.present and flag.value in ("", []) and flag.value != flag.default:
                raise flags.Error(f"--{flag.name} is empty; give it a value, or leave it out")
        return rest
    except flags.Error as error:
        print(f"error: {' '.join(str(error).split()).rstrip('.')}: see --help.", file=sys.stderr)
        sys.exit(1)
    except SystemExit:
        # absl ends --help in 1.
        sys.exit(0)


def say_interrupts_in_one_line() -> None:
    """Let Ctrl-C end in one line also while a script still imports, before :func:`run`. The exit status stays 130."""

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped before it began.", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = hook


#: Flags whose values are places on this machine: a command that is recorded names the flag in their stead.
_PLACES = ("path", "data_dir", "scheduler", "images", "out")


def command() -> str:
    """The command that this script was started with, without this machine's paths, as results record it."""
    words = ["python", f"scripts/{Path(sys.argv[0]).name}"]
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        if flag.present:
            is_place = flag.name in _PLACES or Path(str(flag.value)).is_absolute()
            if is_place:
                words.append(f"--{flag.name}={flag.name.upper()}")
            elif isinstance(flag.value, list):
                items = (Path(item).name if Path(item).is_absolute() else item for item in map(str, flag.value))
                words.append(f"--{flag.name}={','.join(items)}")
            else:
                words.append(flag.serialize())
    return shlex.join(words)


@contextmanager
def without_startup_messages() -> Iterator[None]:
    """
    Drop what TensorFlow writes about missing GPU libraries while it starts; where the program fails, show it.

    A user's mistake or interruption is no failure of the program.

    These lines come from C++ before its log level counts, so they are caught at the file descriptor.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except Exception:
            caught.seek(0)
            os.write(saved, caught.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
