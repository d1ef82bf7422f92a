"""The scripts as a person runs them, but for the seconds that importing TensorFlow takes."""

import os
import sys

from .forked import Ended, run_forked

SMALL = ["--dataset=digits", "--N_train=60", "--N_vali=20", "--N_test=30", "--n_max=25"]


ENVIRONMENT = {**os.environ, "PYTHON": sys.executable}


def script(name: str, *flags: object) -> Ended:
    """Run ``scripts/NAME.py``."""
    return run_forked(name, *flags)


def refused(ended: Ended, said: str, status: int = 1) -> None:
    """The script ended with one line on standard error."""
    assert ended.status == status, ended.stderr
    assert ended.is_one_line, ended.stderr
    assert said in ended.stderr
