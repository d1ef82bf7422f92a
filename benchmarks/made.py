"""A positive definite kernel that costs nothing, and runs of any size stored with it: for benchmarks of stage 2."""

import numpy as np

from cnn_gp.compute.scheduler import compute_run
from cnn_gp.compute.worker import Job
from cnn_gp.data.datasets import Dataset
from cnn_gp.engines.engine import Count
from cnn_gp.store.description import Description
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.tiling import DEFAULT_N_MAX

D, N_CLASSES = 64, 10


class MadeEngine:
    """The kernel above, in float32."""

    name = "made"

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def matrix(
        self,
        X: np.ndarray,
        X2: np.ndarray | None = None,
        progress: Count | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """[N, M], or [N, N] with the diagonal; into ``out`` where it is given."""
        K = (X @ (X if X2 is None else X2).T / D) ** 2
        if X2 is None:
            K = np.triu(K) + np.triu(K, 1).T
            np.fill_diagonal(K, self.diag(X))
        if progress is not None:
            progress(K.size if X2 is not None else len(X) * (len(X) + 1) // 2)
        if out is None:
            return K
        out[:] = K
        return out

    def diag(self, X: np.ndarray) -> np.ndarray:
        """[N]"""
        return (np.einsum("nd,nd->n", X, X) / D) ** 2 + np.float32(0.5)

    def first_non_finite(self, x: np.ndarray, x2: np.ndarray) -> str:
        """Never."""
        return "the made kernel"


def made_data(N_train: int, N_vali: int, N_test: int) -> Dataset:
    """Standard normal images; the class is the prototype with the largest squared product."""
    rng = np.random.default_rng(0)
    N = N_train + N_vali + N_test
    X = rng.normal(size=(N, D)).astype(np.float32)
    Y = ((X @ rng.normal(size=(D, N_CLASSES))) ** 2).argmax(axis=1)
    a, b = N_train, N_train + N_vali
    return Dataset("made", X[:a], Y[:a], X[a:b], Y[a:b], X[b:], Y[b:], (D,), N_CLASSES)


def made_run(path: str, N_train: int, N_vali: int, N_test: int, n_max: int = DEFAULT_N_MAX) -> RunDirectory:
    """Store the run "made", as save_kernels.py would."""
    data = made_data(N_train, N_vali, N_test)
    # What stage 2 prints of a kernel is read from its layers.
    kernel = {"input_shape": [D], "network": {"layer": "Dense", "var_weight": 1.0, "var_bias": 0.0}}
    description = Description.of(data, model="random", kernel=kernel, n_max=n_max, float_type="float32")
    run = RunDirectory(path, "made")
    run.begin(description, data)
    compute_run(Job(path, run.name, MadeEngine, run.id))
    return run
