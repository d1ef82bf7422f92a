"""What the documents say of the code: the networks, the modules, the links, the versions."""

import json
import re
import subprocess
import tomllib

import pytest

import cnn_gp
from cnn_gp import NNGPKernel, build_kernel
from helpers.documents import DOCUMENTS, blocks
from helpers.paths import ROOT


@pytest.mark.parametrize("model", ["convnet_gp", "residual_cnn_gp", "resnet_gp"])
def test_the_three_networks_written_out_are_the_kernels(model):
    names: dict[str, object] = {}
    for block in blocks("docs/mathematics.md"):
        exec(block.text, names)
    assert NNGPKernel(names[model], [1, 28, 28]).describe() == build_kernel(model, [1, 28, 28]).describe()


def test_the_architecture_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "cnn_gp").rglob("*.py"):
        if not path.stem.startswith("_"):
            (row,) = [line for line in text.splitlines() if line.startswith(f"| `{path.parent.relative_to(ROOT)}` |")]
            assert f"`{path.stem}`" in row, path


def test_every_public_name_is_in_the_usage_page():
    text = (ROOT / "docs" / "usage.md").read_text().split("## Names in Python")[1]
    for name in cnn_gp.__all__:
        assert name.startswith("__") or re.search(rf"`{name}\b", text), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        linked = (ROOT / document).parent / path if path else ROOT / document
        assert linked.exists(), target
        if heading:
            assert heading in {_anchor(line) for line in linked.read_text().splitlines() if line.startswith("#")}


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    words = re.sub("[^a-z0-9 _-]", "", heading.lstrip("# ").lower())
    return words.replace(" ", "-")


def test_paths_named_in_the_documents_exist():
    for document in DOCUMENTS:
        if document != "CHANGELOG.md":
            for path in re.findall(
                r"`((?:cnn_gp|tests|docs|benchmarks|scripts)/[\w./]+)`", (ROOT / document).read_text()
            ):
                assert (ROOT / path).exists(), (document, path)


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("make ")] == targets.split()


def test_the_constraints_are_the_versions_behind_the_results():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines)
    for path in (ROOT / "results").rglob("*.json"):
        versions = json.loads(path.read_text())["versions"]
        packages = {"tensorflow", "gpflow", "numpy", "scipy", "h5py", "numba"}
        assert {name: pinned[name] for name in packages} == {name: versions[name] for name in packages}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["figures"]
    names = [re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted]
    assert set(names) <= pinned.keys()
