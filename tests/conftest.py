"""What several tests share."""

import json
import os
from pathlib import Path

# Before TensorFlow is imported: its start-up lines would drown a failing test's message.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder of the real MNIST's files, where there is one beside the checkout."""
    folder = SHARED / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip("the real MNIST isn't beside this checkout (../shared/data/mnist)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def golden_manifest() -> dict[str, dict]:
    return json.loads((GOLDEN / "manifest.json").read_text())
