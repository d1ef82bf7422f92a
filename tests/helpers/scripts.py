"""The scripts as a person runs them, in processes of their own."""

import os
import subprocess
import sys
from typing import Any

from .paths import ROOT
from .waiting import PATIENCE

SMALL = ["--dataset=digits", "--N_train=60", "--N_vali=20", "--N_test=30", "--n_max=25"]


ENVIRONMENT = {**os.environ, "PYTHON": sys.executable}


def script(name: str, *flags: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, **options)


def refused(process: subprocess.CompletedProcess[str], said: str, status: int = 1) -> None:
    """The process ended with one line on standard error."""
    assert process.returncode == status, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), process.stderr
    assert said in lines[0]
