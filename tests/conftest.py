"""Fixtures that several tests share."""

import os
import signal
from pathlib import Path

# Before TensorFlow is imported: its start-up lines would drown a failing test's message.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pytest

from helpers.paths import SHARED

# A shell starts what it puts in the background with Ctrl-C ignored, and so would be what the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests some of which take minutes, so that none of them runs alone at the end."""
    items.sort(
        key=lambda item: item.path.parent.name not in ("faults", "docs") and "machine_code" not in item.path.name
    )


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
