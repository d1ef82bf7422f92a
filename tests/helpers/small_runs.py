"""Small runs with a kernel in NumPy, for tests of everything but the mathematics."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cnn_gp.compute.scheduler import compute_run
from cnn_gp.compute.worker import Job
from cnn_gp.data.datasets import Dataset
from cnn_gp.engines.engine import Count
from cnn_gp.store.description import Description
from cnn_gp.store.run_directory import RunDirectory


class NumpyEngine:
    """A squared exponential kernel, entry by entry independent of the matrix it is in."""

    name = "numpy"

    def __init__(self) -> None:
        self.calls = 0

    def matrix(
        self,
        X: np.ndarray,
        X2: np.ndarray | None = None,
        progress: Count | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        entries = self.entries(X, X2, progress)
        if out is None:
            return entries
        out[:] = entries
        return out

    def entries(self, X: np.ndarray, X2: np.ndarray | None = None, progress: Count | None = None) -> np.ndarray:
        self.calls += 1
        X2 = X if X2 is None else X2
        distances = ((X[:, None, :].astype(np.float64) - X2[None, :, :]) ** 2).sum(-1)
        if progress is not None:
            progress(distances.size)
        return (2 * np.exp(-0.5 * distances)).astype(X.dtype)

    def diag(self, X: np.ndarray) -> np.ndarray:
        return np.full(len(X), 2, X.dtype)

    def first_non_finite(self, x: np.ndarray, x2: np.ndarray) -> str:
        return "layers[1] (ExReLU)"


def make_data(N_train: int = 23, N_vali: int = 9, N_test: int = 7, n_classes: int = 3, seed: int = 0) -> Dataset:
    """Images of two pixels in as many clusters as there are classes."""
    rng = np.random.default_rng(seed)
    N = N_train + N_vali + N_test
    Y = np.arange(N) % n_classes
    X = (rng.normal(size=(N, 2)) + 2 * Y[:, None]).astype(np.float32)
    a, b = N_train, N_train + N_vali
    return Dataset("made", X[:a], Y[:a], X[a:b], Y[a:b], X[b:], Y[b:], (1, 1, 2), n_classes)


def make_description(data: Dataset, n_max: int = 5, float_type: str = "float64", **changes: Any) -> Description:
    kernel = {"input_shape": [1, 1, 2], "network": {"layer": "Dense", "var_weight": 1.0, "var_bias": 0.0}}
    description = Description.of(data, model="convnet_gp", kernel=kernel, n_max=n_max, float_type=float_type)
    return replace(description, **changes)


def begin(path: Path, data: Dataset, **changes: Any) -> RunDirectory:
    run = RunDirectory(path, "small")
    run.begin(make_description(data, **changes), data)
    return run


def job_of(run: RunDirectory, make_engine: Callable[[str], Any], **options: Any) -> Job:
    """The job of a run that was begun, for an engine that computes its kernel."""
    return Job(str(run.workdir), run.name, make_engine, run.id, **options)


def compute(run: RunDirectory, engine: NumpyEngine | None = None, **options: Any) -> bool:
    """Compute what is missing, in this process, with an engine of which the test keeps hold."""
    return compute_run(job_of(run, lambda device: engine or NumpyEngine()), **options)


def complete(path: Path, data: Dataset, engine: NumpyEngine | None = None, **changes: Any) -> RunDirectory:
    run = begin(path, data, **changes)
    compute(run, engine)
    return run
