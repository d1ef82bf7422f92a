"""What the scripts share: which of TensorFlow's start-up messages are shown."""

import contextlib
import os

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
