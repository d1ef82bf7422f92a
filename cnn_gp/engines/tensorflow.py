"""
The kernel's own TensorFlow program, compiled by XLA, on the CPU or on GPUs.

A matrix is cut into square tiles of one size (the last ones padded by repeating an image), so that there is one
compilation, and the tiles are dealt to lanes: one per GPU, or on the CPU one per core. On the CPU the tiles are small,
so that the maps of a tile's pairs stay in the cache between one operation and the next, and each lane computes whole
tiles on a single thread, which scales better than many threads in each operation.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from ..errors import UserError
from .threads import each, n_cores

if TYPE_CHECKING:
    from ..kernels.nngp import NNGPKernel
    from .engine import Progress

#: Images on a side of a tile on the CPU: found by benchmarks/kernel_entries.py's sweep.
CPU_TILE = 16


def configure(n_gpus: int, use: bool = True) -> int:
    """
    Set TensorFlow up for a process that does nothing but compute kernels. To be called before TensorFlow's first use.

    On the CPU an operation gets one thread, since the engine runs a tile per core. GPU memory grows as it is used.

    :param use: False: check that there are so many, but leave them to other processes.
    :return: the number of GPUs that TensorFlow sees, whether they are used or not.
    :raises UserError: where there are fewer than asked for.
    """
    global _configured
    if n_gpus < 0:
        raise UserError(f"--n_gpus is {n_gpus}; expected 0 (the CPU) or the number of GPUs.")
    gpus = tf.config.list_physical_devices("GPU")
    if n_gpus > len(gpus):
        raise UserError(
            f"--n_gpus is {n_gpus}, but TensorFlow sees {len(gpus)} GPUs: lower it, or install the package with "
            "its [gpu] extra and check that nvidia-smi lists them."
        )
    used = gpus[:n_gpus] if use else []
    tf.config.set_visible_devices(used, "GPU")
    for gpu in used:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not used:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(n_cores())
        # The CPU device is initialised here, so that what TensorFlow has to say is said now.
        tf.config.list_logical_devices()
    _configured = True
    return len(gpus)


def worker_engine(device: str, *, model_arguments: dict[str, Any], n_max: int = 200) -> "TensorFlowEngine":
    """
    In a worker: the engine of a named kernel on a device.

    :param device: "cpu", "gpu:i" (a process that sees that GPU only), or "cluster": a GPU where there is one.
    :param model_arguments: of :func:`cnn_gp.kernels.architectures.build_kernel`.
    """
    from ..kernels.architectures import build_kernel

    n_gpus = len(tf.config.list_physical_devices("GPU")) if device == "cluster" else int(device.startswith("gpu"))
    # Unless this is the main process, which has done it for the same device.
    if not configured():
        # Where TensorFlow was in use before, as in a notebook, its settings stay.
        with contextlib.suppress(RuntimeError):
            configure(min(n_gpus, 1))
    return TensorFlowEngine(build_kernel(**model_arguments), n_gpus=min(n_gpus, 1), n_max=n_max)


_configured = False


def configured() -> bool:
    """Whether :func:`configure` was called in this process."""
    return _configured


class TensorFlowEngine:
    """
    Computes blocks of a kernel with TensorFlow and XLA.

    :param kernel: the kernel; the dtype of the images decides the precision.
    :param n_gpus: 0 for the CPU.
    :param n_max: images on a side of a tile on a GPU.
    :param tile: images on a side of a tile, in place of the default for the device.
    """

    name = "tensorflow"

    def __init__(self, kernel: "NNGPKernel", *, n_gpus: int = 0, n_max: int = 200, tile: int | None = None) -> None:
        # TF32 would silently round float32 products to 10 bits on recent GPUs.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        lanes = [f"/GPU:{i}" for i in range(n_gpus)] or ["/CPU:0"] * n_cores()
        self._kernel = kernel
        self._tile = tile or (n_max if n_gpus else CPU_TILE)
        self._lanes: queue.SimpleQueue[str] = queue.SimpleQueue()
        for lane in lanes:
            self._lanes.put(lane)
        self._pool = ThreadPoolExecutor(len(lanes), thread_name_prefix="lane")
        self._compiling = threading.Lock()
        self._compiled: set[tuple] = set()
        self._cross = tf.function(lambda X, X2: kernel.K(X, X2), jit_compile=True, autograph=False)
        self._diag = tf.function(lambda X: kernel.K_diag(X), jit_compile=True, autograph=False)

    def matrix(self, X: np.ndarray, X2: np.ndarray | None = None, progress: "Progress | None" = None) -> np.ndarray:
        """K(X, X2) [N, M]; without X2 the symmetric K(X) [N, N], whose diagonal is :meth:`diag`'s to the bit."""
        symmetric = X2 is None
        X2 = X if X2 is None else X2
        result = np.empty((len(X), len(X2)), X.dtype)

        def compute(tile: tuple[int, int]) -> None:
            i, j = tile
            rows, columns = X[i : i + self._tile], X2[j : j + self._tile]
            block = self._run(self._cross, self._padded(rows), self._padded(columns))[: len(rows), : len(columns)]
            result[i : i + len(rows), j : j + len(columns)] = block
            if progress is not None:
                # Of a tile on the diagonal only a triangle is kept.
                n = len(rows)
                progress(n * (n + 1) // 2 if symmetric and i == j else block.size)

        each(self._pool, compute, self._tiles(len(X), len(X2), symmetric))
        if symmetric:
            lower = np.tril_indices(len(X), -1)
            result[lower] = result.T[lower]
            np.fill_diagonal(result, self.diag(X))
        return result

    def diag(self, X: np.ndarray) -> np.ndarray:
        """The variances of the images, [N]."""
        result = np.empty(len(X), X.dtype)

        def compute(tile: tuple[int, int]) -> None:
            i, _ = tile
            rows = X[i : i + self._tile]
            result[i : i + len(rows)] = self._run(self._diag, self._padded(rows))[: len(rows)]

        each(self._pool, compute, ((i, i) for i in range(0, len(X), self._tile)))
        return result

    def first_non_finite(self, x: np.ndarray, x2: np.ndarray) -> str:
        """For an error message: the layer in which the kernel of two images [D] first isn't finite."""
        return self._kernel.first_non_finite(x[None], x2[None]) or "the compiled program only"

    def _tiles(self, n: int, m: int, symmetric: bool) -> Iterator[tuple[int, int]]:
        for i in range(0, n, self._tile):
            for j in range(i if symmetric else 0, m, self._tile):
                yield i, j

    def _padded(self, images: np.ndarray) -> np.ndarray:
        """The images, the last one repeated until there are as many as a tile is wide: one shape, one compilation."""
        missing = self._tile - len(images)
        return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images

    def _run(self, function: tf.types.experimental.PolymorphicFunction, *images: np.ndarray) -> np.ndarray:
        with self._lane() as device, tf.device(device):
            key = (id(function), device, images[0].dtype)
            if key in self._compiled:
                return function(*map(tf.constant, images)).numpy()
            with self._compiling:
                result = function(*map(tf.constant, images)).numpy()
                self._compiled.add(key)
                return result

    @contextlib.contextmanager
    def _lane(self) -> Iterator[str]:
        device = self._lanes.get()
        try:
            yield device
        finally:
            self._lanes.put(device)
