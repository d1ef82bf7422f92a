"""
The kernel's own TensorFlow program, compiled by XLA, on the CPU or on GPUs.

A matrix is cut into square batches of pairs of images, all of one size (the last ones padded by repeating an image), so
that there is one compilation, and the batches are dealt to the GPUs, or on the CPU to its cores. On the CPU a batch is
small, so that the maps of its pairs stay in the cache between one operation and the next, and each core computes whole
batches on a single thread, which scales better than many threads in each operation.
"""

import contextlib
import math
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from .. import memory
from ..errors import UserError
from .threads import each, n_cores

if TYPE_CHECKING:
    from ..kernels.layer import Layer
    from ..kernels.network_kernel import NetworkKernel
    from .engine import Count

#: Images on a side of a batch on the CPU: found by benchmarks/kernel_entries.py's sweep.
CPU_BATCH = 16

#: The same on a GPU.
GPU_BATCH = 200

#: Bytes that the maps of a batch may take, about.
LARGEST_MAPS = 10**9

#: Arrays of the largest map's size that are in memory at a time; measured in float32: benchmarks/README.md.
_ARRAYS = 14


def default_batch_size(kernel: "NetworkKernel", n_gpus: int, n_max: int = GPU_BATCH, itemsize: int = 4) -> int:
    """
    Images on a side of a batch where nothing else is asked for: fewer where pooling makes the maps of a pair large.

    :param n_max: images on a side of a tile.
    :param itemsize: bytes of a number.
    :raises UserError: on the CPU, where not even the maps of single pairs, one on each core, fit into memory.
    """
    most = min(n_max, GPU_BATCH) if n_gpus else CPU_BATCH
    if kernel.n_displacements == 1:
        return most
    of_a_pair, largest = itemsize * _ARRAYS * kernel.largest_map, LARGEST_MAPS
    if not n_gpus:
        memory.check(
            n_cores() * of_a_pair,
            f"An entry of this pooled kernel at a time on each of {n_cores()} cores",
            "take smaller images, a smaller pool, fewer cores (taskset), or a machine with more",
        )
        largest = min(largest, memory.available() // n_cores())
    return max(1, min(most, math.isqrt(largest // of_a_pair)))


def n_gpus_seen() -> int:
    """The GPUs of this machine that TensorFlow can use."""
    return len(tf.config.list_physical_devices("GPU"))


def configure(n_gpus: int, use: bool = True) -> None:
    """
    Set TensorFlow up for a process that does nothing but compute kernels. To be called before TensorFlow's first use.

    On the CPU an operation gets one thread, since the engine runs a batch per core. GPU memory grows as it is used.
    Where TensorFlow was in use before, as in a notebook, its settings stay.

    :param use: False: check that there are so many, but leave them to other processes.
    :raises UserError: where there are fewer than asked for.
    """
    if n_gpus > n_gpus_seen():
        raise UserError(
            f"--n_gpus is {n_gpus}, but TensorFlow sees {n_gpus_seen()} GPUs: lower it, or install the package with "
            "its [gpu] extra and check that nvidia-smi lists them."
        )
    used = tf.config.list_physical_devices("GPU")[:n_gpus] if use else []
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices(used, "GPU")
        for gpu in used:
            tf.config.experimental.set_memory_growth(gpu, True)
        if not used:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(n_cores())
            # Initialise the CPU device, so that TensorFlow's start-up messages appear here.
            tf.config.list_logical_devices()


class TensorFlowEngine:
    """
    Computes matrices of a kernel with TensorFlow and XLA, as the kernel is when they are asked for: another value of a
    parameter costs nothing, another network (an attribute of a layer, say) is compiled anew.

    :param kernel: the kernel; the dtype of the images decides the precision.
    :param n_gpus: 0 for the CPU.
    :param batch_size: images on a side of a batch, in place of :func:`default_batch_size`'s.
    """

    name = "tensorflow"

    def __init__(self, kernel: "NetworkKernel", *, n_gpus: int = 0, batch_size: int | None = None) -> None:
        # TF32 would silently round float32 products to 10 bits on recent GPUs.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        devices = [f"/GPU:{i}" for i in range(n_gpus)] or ["/CPU:0"] * n_cores()
        self.kernel = kernel
        self._batch_size = batch_size or default_batch_size(kernel, n_gpus)
        self._free_devices: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in devices:
            self._free_devices.put(device)
        self._pool = ThreadPoolExecutor(len(devices), thread_name_prefix="batch")
        self._compiling = threading.Lock()
        self._trace()

    def _trace(self) -> None:
        """The programs, which read the kernel's variables and have all else of it in them."""
        self._compiled: set[tuple] = set()
        self._traced = _structure(self.kernel.network), self.kernel.variables
        self._cross = tf.function(lambda X, X2: self.kernel.K(X, X2), jit_compile=True, autograph=False)
        self._diag = tf.function(lambda X: self.kernel.K_diag(X), jit_compile=True, autograph=False)

    def _trace_if_changed(self) -> None:
        structure, variables = self._traced
        there = self.kernel.variables
        same = len(there) == len(variables) and all(a is b for a, b in zip(there, variables, strict=True))
        if not same or structure != _structure(self.kernel.network):
            self._trace()

    def matrix(
        self,
        X: np.ndarray,
        X2: np.ndarray | None = None,
        progress: "Count | None" = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        K(X, X2) [N, M]; without X2 the symmetric K(X) [N, N], whose diagonal is :meth:`diag`'s to the bit.

        :param out: where entries are written; what isn't NaN there isn't computed again (:class:`.engine.Engine`).
        """
        self._trace_if_changed()
        symmetric = X2 is None
        X2 = X if X2 is None else X2
        result = np.full((len(X), len(X2)), np.nan, X.dtype) if out is None else out

        def compute(corner: tuple[int, int]) -> None:
            i, j = corner
            rows, columns = X[i : i + self._batch_size], X2[j : j + self._batch_size]
            batch = result[i : i + len(rows), j : j + len(columns)]
            if np.isnan(batch).any():
                entries = self._run(self._cross, self._padded(rows), self._padded(columns))
                batch[:] = entries[: len(rows), : len(columns)]
            if progress is not None:
                # Of a batch on the diagonal only a triangle is kept.
                n = len(rows)
                progress(n * (n + 1) // 2 if symmetric and i == j else batch.size)

        each(self._pool, compute, self._corners(len(X), len(X2), symmetric))
        if symmetric:
            lower = np.tril_indices(len(X), -1)
            result[lower] = result.T[lower]
            np.fill_diagonal(result, self.diag(X))
        return result

    def diag(self, X: np.ndarray) -> np.ndarray:
        """The kernel's diagonal K(x, x) at the images, [N]."""
        self._trace_if_changed()
        result = np.empty(len(X), X.dtype)

        def compute(corner: tuple[int, int]) -> None:
            i, _ = corner
            rows = X[i : i + self._batch_size]
            result[i : i + len(rows)] = self._run(self._diag, self._padded(rows))[: len(rows)]

        each(self._pool, compute, ((i, i) for i in range(0, len(X), self._batch_size)))
        return result

    def first_non_finite(self, x: np.ndarray, x2: np.ndarray) -> str:
        """For an error message: the layer in which the kernel of two images [D] first isn't finite."""
        return self.kernel.first_non_finite(x[None], x2[None]) or "the compiled program only"

    def _corners(self, n: int, m: int, symmetric: bool) -> Iterator[tuple[int, int]]:
        for i in range(0, n, self._batch_size):
            for j in range(i if symmetric else 0, m, self._batch_size):
                yield i, j

    def _padded(self, images: np.ndarray) -> np.ndarray:
        """The images, the last one repeated until there are as many as a batch has: one shape, one compilation."""
        missing = self._batch_size - len(images)
        return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images

    def _run(self, function: tf.types.experimental.PolymorphicFunction, *images: np.ndarray) -> np.ndarray:
        with self._device() as device, tf.device(device):
            key = (id(function), device, images[0].dtype)
            if key in self._compiled:
                return function(*map(tf.constant, images)).numpy()
            with self._compiling:
                result = function(*map(tf.constant, images)).numpy()
                self._compiled.add(key)
                return result

    @contextlib.contextmanager
    def _device(self) -> Iterator[str]:
        device = self._free_devices.get()
        try:
            yield device
        finally:
            self._free_devices.put(device)


def _structure(layer: "Layer") -> list[Any]:
    """What decides the compiled program: the layers without their parameters."""
    return [type(layer), layer.structure(), [_structure(child) for child in layer.children]]
