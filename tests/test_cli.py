"""What the scripts share: which of TensorFlow's start-up messages are shown, and output that nobody reads."""

import contextlib
import os
import subprocess
import sys

import pytest

from cnn_gp import cli
from cnn_gp.errors import UserError


@pytest.mark.parametrize(
    ("error", "is_shown"),
    [(None, False), (UserError, False), (KeyboardInterrupt, False), (cli.Terminated, False), (ImportError, True)],
)
def test_startup_messages_are_shown_where_the_program_fails(capfd, error, is_shown):
    with contextlib.nullcontext() if error is None else pytest.raises(error), cli.without_startup_messages():
        os.write(2, b"no GPU\n")
        if error is not None:
            raise error
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == ("no GPU\n" if is_shown else "") + "afterwards\n"


def test_output_that_nobody_reads_any_longer_is_one_line():
    program = "from cnn_gp import cli; cli.run(lambda: [print('line', flush=True) for _ in range(100_000)])"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program], **pipes)
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read().startswith("stopped: the program that read the output has ended")
    assert process.wait() == 1
