"""What the scikit-learn estimators share: from images to a solution, and from new images to the posterior."""

import functools
import json
import math
import numbers
import operator
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from .. import memory
from ..data.images import channels_first, flat_as_in_training, flat_pixels, range_warning
from ..data.preprocessing import ZCA
from ..data.validation import as_numbers, as_value_errors, validated
from ..engines.choice import make_engine
from ..engines.engine import Engine
from ..errors import InputError
from ..progress import silent
from ..regression.gram_matrix import GramMatrix
from ..regression.iterative import Iterative, least_bytes
from ..regression.leave_one_out import LeaveOneOut, leave_one_out
from ..regression.lower_triangle import LowerTriangle
from ..regression.memory_needs import n_bytes
from ..regression.solve import Solution, solve
from .computed_gram import ROWS, ComputedGram
from .noise_choice import best_noise
from .predict_images import posterior

if TYPE_CHECKING:
    from ..kernels.architectures import Pool
    from ..kernels.layer import Layer
    from ..kernels.network_kernel import NetworkKernel

Noise = float | Literal["loo", "validation"]

Solver = Literal["auto", "cholesky", "cg"]

#: Of so many images one is held out to choose the noise by noise="validation".
HELD_OUT = 6


class NNGPEstimator(BaseEstimator):
    """What the classifier and the regressor share; their parameters are documented there."""

    def __init__(
        self,
        kernel: "str | Layer | NetworkKernel | None" = None,
        *,
        pool: "Pool | None" = None,
        ntk: bool = False,
        noise: Noise = 0.0,
        solver: Solver = "auto",
        image_shape: Sequence[int] | None = None,
        engine: str = "auto",
        n_threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.kernel = kernel
        self.pool = pool
        self.ntk = ntk
        self.noise = noise
        self.solver = solver
        self.image_shape = image_shape
        self.engine = engine
        self.n_threads = n_threads
        self.verbose = verbose

    _solution: Solution
    _leave_one_out: LeaveOneOut | None
    _targets: np.ndarray
    """[N, outputs]"""
    _order: np.ndarray
    """Of the images as they were given, the order in which they are kept."""
    _pixel_range: np.ndarray
    """[2], of the training images as they were given."""
    _zca: ZCA | None
    """Of a stored run whose images are whitened."""

    # What is fitted --------------------------------------------------------------------------------------------------

    @property
    def alpha_(self) -> np.ndarray:
        """The solution of the linear system, [N, outputs], for the images ``X_train_``."""
        return self._fitted().alpha

    @property
    def noise_(self) -> float:
        """The noise, given or chosen, relative to the kernel's mean diagonal."""
        return self._fitted().noise

    @property
    def jitter_(self) -> float:
        """What had to be added besides, relative as the noise, for the matrix to be positive definite in float64."""
        return self._fitted().jitter

    @property
    def log_marginal_likelihood_(self) -> float:
        """Of all outputs, independent given the kernel, at an output scale of 1."""
        return self._fitted().log_marginal_likelihood

    @property
    def loo_log_predictive_density_(self) -> float:
        """The sum over images and outputs of the log density of each target, had its image been left out."""
        return self._left_out().log_predictive_density(self._targets, self._output_scale(self._solution.alpha))

    def _fitted(self) -> Solution:
        check_is_fitted(self)
        return self._solution

    def _left_out(self) -> LeaveOneOut:
        """Computed when it is first asked for: it takes as long as the factorisation."""
        solution = self._fitted()
        if self._leave_one_out is None:
            with silent(not self.verbose):
                self._leave_one_out = leave_one_out(solution, self._targets)
        return self._leave_one_out

    def _left_out_means(self) -> np.ndarray:
        """[N, outputs], in the order in which the images were given."""
        means = np.empty_like(self._targets)
        means[self._order] = self._left_out().means
        return means

    def _output_scale(self, alpha: np.ndarray) -> Any:
        """The factor of the kernel of maximum marginal likelihood: one, or one for each output."""
        raise NotImplementedError

    def _validation_loss(self, means: np.ndarray, Y: np.ndarray) -> float:
        """What the noise makes small on images that are held out, for their targets Y."""
        raise NotImplementedError

    # Fitting ---------------------------------------------------------------------------------------------------------

    def _fit(self, X: np.ndarray, Y: np.ndarray) -> None:
        """For images as :func:`~cnn_gp.data.validation.validated` returns them and targets Y [N, outputs]."""
        # So that a fit that fails leaves nothing of another.
        self.__dict__.pop("_solution", None)
        self._check_noise_and_solver()
        self._check_memory(*Y.shape)
        pixels, shape = self._pixels_and_shape(X)
        kernel = self._build_kernel(shape)
        self.image_shape_ = shape
        self.kernel_description_ = kernel.describe()
        self._order = np.arange(len(Y))
        if self.noise == "validation":
            held_out = self._order % HELD_OUT == HELD_OUT - 1
            if not held_out.any():
                raise InputError(
                    f"There are {len(Y)} images; noise='validation' needs {HELD_OUT} or more: give a number."
                )
            self._order = np.concatenate([self._order[~held_out], self._order[held_out]])
        self.X_train_ = pixels[self._order]
        self._zca = None
        self._pixel_range = np.array([pixels.min(), pixels.max()])
        with silent(not self.verbose):
            gram = ComputedGram(self._cached_engine(), self.X_train_)
            self._solve(gram, Y[self._order])

    def _solve(
        self,
        gram: GramMatrix,
        Y: np.ndarray,
        validation_loss: Callable[[Solution], float] | None = None,
    ) -> None:
        """
        :param validation_loss: for noise="validation", of a solution for all of Y; without it the last of Y are held
            out.
        """
        self._targets = Y
        self._leave_one_out = None
        self.noise_search_: dict[float, float] = {}

        say = print if self.verbose else _say_nothing
        iterative = self._iterative(gram, len(Y), say)

        def solve_for(N: int, noise: float) -> Solution:
            return solve(gram, Y[:N], 0.0, noise, say, images=lambda: self.X_train_, iterative=iterative)

        def solve_at(noise: float) -> Solution:
            return solve_for(len(Y), noise)

        if self.noise == "loo":
            found = {}

            def loss(solution: Solution) -> float:
                found[solution.noise] = leave_one_out(solution, Y)
                return -found[solution.noise].log_predictive_density(Y, self._output_scale(solution.alpha))

            self._solution, self.noise_search_ = best_noise(solve_at, loss)
            self._leave_one_out = found[self._solution.noise]
        elif self.noise == "validation" and validation_loss is not None:
            self._solution, self.noise_search_ = best_noise(solve_at, validation_loss)
        elif self.noise == "validation":
            N = len(Y) - len(Y) // HELD_OUT
            best, self.noise_search_ = best_noise(
                lambda noise: solve_for(N, noise), lambda solution: self._validation_loss(solution.products[N:], Y[N:])
            )
            noise = best.noise
            del best
            self._solution = solve_at(noise)
        else:
            self._solution = solve_at(float(self.noise))

    def _iterative(self, gram: GramMatrix, N: int, say: Callable[[str], None]) -> Iterative | None:
        """How to solve by conjugate gradients, where that is asked for or a factor doesn't fit; None: by a factor."""
        needed = n_bytes(N, gram.n_max, gram.N) + (self._n_factors - 1) * LowerTriangle.n_bytes(N)
        there = memory.available()
        if self.solver == "cholesky" or (self.solver == "auto" and needed <= there):
            return None
        say(
            f"Solving for {N:,} images by conjugate gradients; a factorisation takes {needed / 1e9:.2f} GB of memory, "
            f"{there / 1e9:.2f} GB are there."
        )
        return Iterative(many_right_sides=True)

    @property
    def _n_factors(self) -> int:
        """That are in memory at a time."""
        return 2 if isinstance(self.noise, str) else 1

    def _check_noise_and_solver(self) -> None:
        is_number = isinstance(self.noise, numbers.Real) and 0 <= self.noise < math.inf
        if self.noise not in ("loo", "validation") and not is_number:
            raise InputError(f"noise is {self.noise!r}; expected a number of at least 0, 'loo' or 'validation'.")
        if self.solver not in get_args(Solver):
            raise InputError(f"solver is {self.solver!r}; expected 'auto', 'cholesky' or 'cg'.")

    def _check_memory(self, N: int, n_outputs: int) -> None:
        """Before the kernel is computed, which takes longest."""
        factors = self._n_factors * LowerTriangle.n_bytes(N)
        iterative = least_bytes(N, n_outputs, min(ROWS, N), N, 4)
        solving = {"cholesky": factors, "cg": iterative, "auto": min(factors, iterative)}[self.solver]
        memory.check(
            ComputedGram.n_bytes(N) + solving,
            f"Fitting {N:,} images",
            "fit fewer, or take save_kernels.py and classify_gp.py, which keep the kernel on disk",
        )

    def _build_kernel(self, shape: tuple[int, ...]) -> "NetworkKernel":
        from ..kernels.architectures import build_kernel, network_kernel
        from ..kernels.composition import Sequential
        from ..kernels.layer import Layer
        from ..kernels.layers import Dense
        from ..kernels.network_kernel import NetworkKernel
        from ..kernels.nonlinearities import ExReLU

        kernel: Any = self.kernel
        if kernel is None:
            vectors = Sequential(Dense(2.0, 0.1), ExReLU(), Dense(2.0, 0.1), ExReLU(), Dense())
            kernel = "resnet_gp" if len(shape) > 1 else vectors
        if isinstance(kernel, NetworkKernel):
            if self.pool is not None or self.ntk:
                raise InputError(
                    "pool or ntk is given with a kernel; expected them with a name or layers: leave them out."
                )
            if tuple(kernel.input_shape) != shape:
                raise InputError(f"The images have shape {shape} and the kernel's are {tuple(kernel.input_shape)}.")
            return kernel
        kind = "ntk" if self.ntk else "nngp"
        if isinstance(kernel, Layer):
            return network_kernel(kernel, shape, kernel=kind, pool=self.pool)
        if not isinstance(kernel, str):
            raise InputError(
                f"kernel is a {type(kernel).__name__}; expected a model's name, a network of layers, "
                "NNGPKernel or NTKKernel."
            )
        if len(shape) == 1:
            raise InputError(
                f"X has shape [N, {shape[0]}], and the kernel {kernel} is of images: give image_shape=(C, H, W), or X "
                "as [N, H, W] or [N, H, W, C]."
            )
        return build_kernel(kernel, shape, kernel=kind, pool=self.pool)

    def _cached_engine(self) -> Engine:
        description = json.dumps(self.kernel_description_, sort_keys=True)
        return _engine(description, self.engine, self.n_threads, self.X_train_.dtype.name, os.getpid())

    # Images ----------------------------------------------------------------------------------------------------------

    def _pixels_and_shape(self, X: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        """The training images, [N, D] float32, channel first, and their shape [C, *positions]."""
        shape = self._given_shape()
        of_kernel = getattr(self.kernel, "input_shape", None)
        if shape is None and X.ndim == 2 and of_kernel is not None:
            shape = tuple(of_kernel)
        if X.ndim == 2 and shape in (None, X.shape[1:]):
            return flat_pixels(channels_first("X", as_numbers(X))), X.shape[1:]
        if X.ndim == 2 and shape is not None:
            return flat_as_in_training("X", X, shape), shape
        X = channels_first("X", X)
        if shape not in (None, X.shape[1:]):
            raise InputError(
                f"X has images of shape {X.shape[1:]}; image_shape is {shape}, channels first: leave it out."
            )
        return flat_pixels(X), X.shape[1:]

    def _given_shape(self) -> tuple[int, ...] | None:
        """``image_shape`` as [C, *positions]. :raises InputError: where it is no shape."""
        if self.image_shape is None:
            return None
        try:
            shape = tuple(map(operator.index, self.image_shape))
        except TypeError:
            shape = ()
        if not shape or min(shape) < 1:
            raise InputError(
                f"image_shape is {self.image_shape!r}; expected whole numbers of at least 1: (C, H, W), or (H, W) for "
                "one channel."
            )
        return (1, *shape) if len(shape) == 2 else shape

    def _posterior(self, X: Any, *, variances: bool) -> tuple[np.ndarray, np.ndarray]:
        """The posterior means [N, outputs] and variances [N] at images; variances are 0 where they aren't asked for."""
        solution = self._fitted()
        with as_value_errors(), silent(not self.verbose):
            X = validated(self, X, reset=False)
            if len(self.image_shape_) == 1:
                X = as_numbers(X)
            pixels = flat_as_in_training("X", X, self.image_shape_)
            remark = range_warning("the images", pixels, self._pixel_range) if len(self.image_shape_) > 1 else None
            if remark is not None:
                warnings.warn(remark.removeprefix("warning: "), stacklevel=3)
            whitened = pixels if self._zca is None else self._zca.transform(pixels)
            pixels = whitened.astype(self.X_train_.dtype)
            return posterior(
                self._cached_engine(), pixels, self.X_train_, solution.alpha, solution if variances else None
            )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_solution")

    # Pickling --------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Without TensorFlow's objects: a network or kernel goes as its description."""
        state = dict(super().__getstate__())
        kernel = state["kernel"]
        if kernel is not None and not isinstance(kernel, str):
            state["kernel"] = ("kernel" if hasattr(kernel, "input_shape") else "layer", kernel.describe())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["kernel"], tuple):
            from ..kernels.description import kernel_from_description
            from ..kernels.layer import layer_from_description

            kind, description = state["kernel"]
            made = kernel_from_description(description) if kind == "kernel" else layer_from_description(description)
            state = {**state, "kernel": made}
        super().__setstate__(state)


def _say_nothing(line: str) -> None:
    """A function that pickles."""


@functools.lru_cache(maxsize=4)
def _engine(description: str, name: str, n_threads: int | None, float_type: str, process: int) -> Engine:
    """:param process: an engine's threads aren't there in a process that was forked."""
    import tensorflow as tf

    from ..kernels.description import kernel_from_description

    n_gpus = len(tf.config.get_visible_devices("GPU"))
    kernel = kernel_from_description(json.loads(description))
    return make_engine(name, kernel, n_gpus=n_gpus, float_type=float_type, n_threads=n_threads)
