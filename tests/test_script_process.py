"""Scripts in forks of this process: their flags, how they end, and signals."""

import signal
import subprocess
import sys
import textwrap

import pytest

from helpers.paths import ROOT
from helpers.waiting import PATIENCE

#: A program that defines a flag and runs the script beside it, which defines the same.
PROGRAM = """
    import sys
    from absl import app, flags
    from cnn_gp.script_process import run_script

    flags.DEFINE_string("ending", "", "Defined here too.")
    flags.DEFINE_bool("anew", False, "In a new Python.")

    def main(argv):
        # Before the script's flags are defined.
        ending, anew = flags.FLAGS.ending, flags.FLAGS.anew
        print("ended in", run_script(argv[1], f"--ending={ending}", anew=anew), flush=True)
        print("ended in", run_script(argv[1], "--ending=0", anew=anew))

    app.run(main)
"""
SCRIPT = """
    import os, signal, sys, time
    from absl import app, flags

    flags.DEFINE_string("ending", "", "")

    def main(argv):
        ending = flags.FLAGS.ending
        print("ending", ending, flush=True)
        if ending == "error":
            raise ValueError("what happened")
        if ending == "wait":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
            print("ready", flush=True)
            time.sleep(PATIENCE)
        sys.exit(int(ending)) if int(ending) >= 0 else os.kill(os.getpid(), -int(ending))

    app.run(main)
""".replace("PATIENCE", str(PATIENCE))


@pytest.fixture
def start(tmp_path):
    """Starts the program, whose script ends as it is told; in a session of its own, as by a shell."""
    for name, text in (("program", PROGRAM), ("script", SCRIPT)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))

    def begin(ending, anew=False):
        flags = [f"--ending={ending}", f"--anew={anew}"]
        command = [sys.executable, tmp_path / "program.py", *flags, tmp_path / "script.py"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)

    return begin


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(("ending", "status"), [("0", 0), ("3", 3), ("-9", 137), ("error", 1)])
def test_a_script_ends_in_its_status_and_the_next_one_runs(start, ending, status, anew):
    out, err = start(ending, anew).communicate(timeout=PATIENCE)
    assert out.splitlines() == [f"ending {ending}", f"ended in {status}", "ending 0", "ended in 0"], err
    assert ("ValueError: what happened" in err) == (ending == "error")


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_script_and_is_not_lost(start, number, status, anew):
    """SIGTERM is sent to the program alone, as by a batch system; Ctrl-C goes to both, as from a terminal."""
    process = start("wait", anew)
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None, process.stderr.read()
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
    out, err = process.communicate(timeout=PATIENCE)
    assert out.splitlines() == [f"ended in {status}", "ending 0", "ended in 0"], err
