"""The Markdown documents, their fenced blocks and their flags."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .paths import ROOT
from .scripts import ENVIRONMENT

#: Relative to the root. The pages under results/ are written by report.py.
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"))
)

_FENCE = re.compile(r"^```(bash|python)\n(.*?)^```\n(?:\nprints `(.*?)`)?", re.MULTILINE | re.DOTALL)

# Runs a script's definitions of flags, and names those that aren't absl's own.
_NAME_FLAGS = """
import runpy, sys
from absl import flags
runpy.run_path(sys.argv[1], run_name="script")
for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if not module.startswith("absl."):
        print(*(flag.name for flag in defined), sep="\\n")
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str
    prints: str
    """What the document says that it prints; "" where it doesn't say."""

    @property
    def first_line(self) -> str:
        return self.text.splitlines()[0]

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := line.split("#")[0].split())]


def blocks(document: str) -> list[Block]:
    """The bash and python blocks of a document, in order."""
    text = (ROOT / document).read_text()
    return [Block(language, body, prints or "") for language, body, prints in _FENCE.findall(text)]


def table(text: str, heading: str) -> dict[str, list[str]]:
    """The cells of the first table after a heading, row by row, by the name in back quotes of each row."""
    lines = text.split(heading)[1].split("\n\n|")[1].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {" ".join(row).split("`")[1]: row for row in rows}


def flags_of(script: Path) -> set[str]:
    """The names of the flags that a script takes, absl's own left out."""
    text = script.read_text()
    if script.parent.name == "benchmarks" and "shared_flags" not in text:
        # They define all their flags themselves, and take seconds to import.
        return set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', text))
    command = [sys.executable, "-c", _NAME_FLAGS, str(script)]
    # Beside it, where a script finds its own modules.
    path = os.pathsep.join([str(script.parent), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])])
    environment = {**ENVIRONMENT, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=True)
    return set(done.stdout.split())


def flags_of_all() -> dict[str, set[str]]:
    """The flags of every script and benchmark, by its path relative to the root."""
    scripts = [*ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip((str(path.relative_to(ROOT)) for path in scripts), pool.map(flags_of, scripts), strict=True))
