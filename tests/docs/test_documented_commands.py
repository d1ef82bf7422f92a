"""Every command and every Python example of the documents is run, or stands in NOT_RUN with the reason why it isn't."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from helpers.documents import DOCUMENTS, Block, blocks, flags_of_all
from helpers.paths import ROOT
from helpers.scripts import ENVIRONMENT

# Some examples draw.
matplotlib.use("Agg")

#: Blocks that aren't run, by the document and the start of their first line.
NOT_RUN = {
    ("README.md", "make experiments"): "a minute; tests/scripts runs run_all_experiments.bash at a small size",
    ("README.md", "pip install"): "downloads a gigabyte from a package index",
    ("CONTRIBUTING.md", "make"): "it runs these tests",
    ("docs/usage.md", "DATASET=mnist"): "three kernels; tests/scripts runs run_all_experiments.bash at a small size",
    ("docs/usage.md", "python scripts/job_size.py"): "tests/scripts runs it by run_all_experiments.bash",
    ("docs/usage.md", "python scripts/plot_convergence.py"): "minutes; tests/report runs it small",
    ("docs/running.md", "python scripts/save_kernels.py --dataset=mnist"): "needs GPUs",
    ("docs/running.md", "from dask_jobqueue"): "needs Slurm",
    ("docs/reproduction.md", "DATASET=mnist"): "an hour; tests/scripts runs run_all_experiments.bash at a small size",
    ("docs/reproduction.md", "python scripts/plot_convergence.py"): "half an hour; tests/report runs it small",
    ("docs/reproduction.md", "python results/shifted_copies"): "needs MNIST, 25 GB of disk and two hours",
    (
        "docs/beyond_the_paper.md",
        "DATASET=",
    ): "an hour; tests/scripts runs run_all_experiments.bash at a small size",
    ("docs/beyond_the_paper.md", "python scripts/"): "needs such a run; docs/usage.md has the same flags",
    ("benchmarks/README.md", "python benchmarks/kernel_entries.py"): "times for minutes what other tests run",
    ("benchmarks/README.md", "python3.11 -m venv"): "downloads from a package index",
    ("benchmarks/README.md", "python benchmarks/conjugate_gradients.py"): "needs a stored run of 8,000 images",
    ("benchmarks/README.md", "python benchmarks/accuracy.py"): "minutes; tests/engines compares the same numbers",
}

#: What is changed in a command, so that it is small.
SMALLER = {
    "--N=12000 --workers=2": "--N=300 --block=100 --repeats=1",
    "--N_train=50000": "--N_train=60 --N_vali=20 --N_test=20",
    "--model=resnet_gp --path=RUNS": "--model=resnet_gp --path=RUNS --N_train=50 --N_vali=20 --N_test=20",
}


def why_not(document: str, block: Block) -> str | None:
    found = [
        reason for (where, start), reason in NOT_RUN.items() if where == document and block.first_line.startswith(start)
    ]
    return found[0] if found else None


class Checkout:
    """A folder like the checkout, in which commands can write; the documents share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.computed: set[str] = set()
        for name in ("scripts", "benchmarks", "run_all_experiments.bash"):
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(sys.prefix)

    def without_what_is_computed(self, text: str) -> str:
        """The commands without the stage 1 of a run that an earlier document computed by the same command."""
        lines = [line for line in text.splitlines() if line not in self.computed]
        self.computed |= {line for line in lines if re.match(r"python scripts/save_kernels.py [^&\\]*$", line)}
        return "\n".join(lines)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("checkout"))


@pytest.mark.long
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(why_not(d, block) is None for block in blocks(d))])
def test_every_block_runs(document, checkout, monkeypatch, request):
    monkeypatch.chdir(checkout.folder)
    to_run = [block for block in blocks(document) if why_not(document, block) is None]
    # A page's examples go on from one another.
    names = {"__name__": "example"}
    # Last, those of MNIST, so that where it isn't here the others have run.
    for block in sorted(to_run, key=lambda block: "--data_dir=DATA" in block.text):
        text = block.text
        if "--data_dir=DATA" in text:
            text = text.replace("--data_dir=DATA", f"--data_dir={request.getfixturevalue('mnist_dir')}")
        if block.language == "python":
            assert block.prints in run_python(text, names)
        else:
            run_bash(checkout.without_what_is_computed(text), checkout.folder)


def run_python(text: str, names: dict[str, object]) -> str:
    """Run an example in this process, where TensorFlow is imported already; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "example", "exec"), names)
    return printed.getvalue()


def test_the_tutorial_makes_its_figures():
    text = (ROOT / "docs" / "tutorial.md").read_text()
    shown = re.findall(r"\(tutorial/(\w+\.png)\)", text)
    assert shown == re.findall(r'savefig\("(\w+\.png)"', text)
    assert {path.name for path in (ROOT / "docs" / "tutorial").iterdir()} == set(shown) != set()


def run_bash(text: str, folder: Path) -> None:
    """Run commands as they stand but for SMALLER and the port of Dask's scheduler; end what they leave running."""
    for standing, smaller in SMALLER.items():
        text = text.replace(standing, smaller)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        text = text.replace("8786", str(free.getsockname()[1]))
    path = os.pathsep.join([str(Path(sys.executable).parent), ENVIRONMENT["PATH"]])
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(
            ["bash", "-eo", "pipefail", "-c", text],
            env={**ENVIRONMENT, "PATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=500)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, f"{text}\n{(folder / 'output').read_text()}"


def test_every_reason_is_of_a_block():
    for document, start in NOT_RUN:
        assert any(block.first_line.startswith(start) for block in blocks(document)), (document, start)
    commands = "\n".join(block.text for document in DOCUMENTS for block in blocks(document))
    assert all(standing in commands for standing in SMALLER)


@pytest.fixture(scope="module")
def flags():
    return flags_of_all()


def test_every_flag_in_a_command_exists(flags):
    checked = 0
    for document in DOCUMENTS:
        for block in blocks(document):
            for words in block.commands:
                scripts = [word for word in words if word in flags]
                for word in words[words.index(scripts[0]) :] if len(scripts) == 1 else ():
                    if word.startswith("--"):
                        name = word.split("=")[0].removeprefix("--")
                        assert {name, name.removeprefix("no")} & flags[scripts[0]], (document, words)
                        checked += 1
    assert checked > 50


def test_usage_lists_every_flag_of_every_script(flags):
    sections = re.split("^## ", (ROOT / "docs" / "usage.md").read_text(), flags=re.MULTILINE)
    for script, defined in flags.items():
        if script.startswith("scripts/"):
            (section,) = [s for s in sections if f"`{Path(script).name}`" in s.splitlines()[0]]
            rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `--")]
            assert set(re.findall("--([A-Za-z_0-9]+)", " ".join(rows))) == defined, script


def test_usage_lists_every_variable_of_the_experiments():
    script = (ROOT / "run_all_experiments.bash").read_text()
    settings = set(re.findall(r"^([A-Z_]+)=\$\{\1", script, flags=re.MULTILINE))
    section = (ROOT / "docs" / "usage.md").read_text().split("## `make experiments`")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall("`([A-Z_]+)`", " ".join(rows))) == settings
    for document in DOCUMENTS:
        for block in blocks(document):
            for words in block.commands:
                if words[-2:] == ["make", "experiments"]:
                    given = re.findall(r"\b([A-Z_]+)=", " ".join(words))
                    assert set(given) <= settings, (document, words)
