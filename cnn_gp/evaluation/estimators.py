"""
The regression as scikit-learn's estimators, for what fits in this machine's memory.

    classifier = NNGPClassifier("convnet_gp", pool=5).fit(images, labels)
    classifier.predict_proba(new_images)

They do what both stages do (:mod:`cnn_gp.compute`, :mod:`.classify`) with the same functions, without files.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.multiclass import check_classification_targets

from ..data.validation import as_value_errors, validated
from ..errors import InputError
from ..progress import silent
from ..regression.predict import error_percent, posterior_means
from ..regression.solve import Solution, targets
from ..store.stored_matrix import StoredGram, StoredKernel
from ..store.stored_run import open_run
from .estimator import NNGPEstimator, Noise, Solver
from .metrics import log_probabilities, output_scale


class NNGPClassifier(ClassifierMixin, NNGPEstimator):
    """
    Classification by Gaussian process regression on -1 and 1, one output per class, as in the paper.

    ``fit(X, y)`` and the methods below take X as [N, H, W], [N, H, W, C], or [N, D] (vectors, or images flattened
    channel first). **uint8 pixels are divided by 255**, floating-point ones are taken as they are; the kernel is
    computed in float32, the linear system is solved in float64. Labels are of any type.

    :param kernel: a model's name ("resnet_gp", "convnet_gp", "myrtle5", ...: see :func:`cnn_gp.build_kernel`), a
        network of layers, or a kernel such as :class:`cnn_gp.NNGPKernel`. None: "resnet_gp" for images, and a
        network of two hidden layers with ReLUs for vectors.
    :param pool: an average pool before the first dense layer: positions of its map on a side, or "global".
    :param ntk: the neural tangent kernel in place of the Gaussian process's.
    :param noise: observation noise, relative to the kernel's mean diagonal: a number, or "loo" or "validation", which
        choose it from a grid with a factorisation each: by the leave-one-out log predictive density, in closed form, or
        by the error on every sixth image, after which all images train.
    :param solver: "cholesky", a factorisation; "cg", conjugate gradients without a factor's memory; "auto": the
        factorisation where its memory fits.
    :param image_shape: of images that are given as [N, D]: (C, H, W), or (H, W) for one channel.
    :param engine: "auto", "fused" (CPU) or "tensorflow".
    :param n_threads: of the fused engine; by default one a core.
    :param verbose: whether progress, and jitter that is needed, are printed.

    :ivar classes_: the labels, sorted.
    :ivar noise_, jitter_: relative to the mean diagonal; jitter is 0 unless the matrix isn't positive definite.
    :ivar noise_search_: the loss of each noise that was tried.
    :ivar log_marginal_likelihood_: as stage 2's.
    :ivar loo_predictions_, loo_score_, loo_log_predictive_density_: leave-one-out, computed when first asked for.
    :ivar alpha_, X_train_, image_shape_, kernel_description_: what predictions are made of.
    :raises InputError: a ValueError, of one line, where a parameter, X or y can't be used.

    >>> from cnn_gp import NNGPClassifier
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits().images / 16, load_digits().target
    >>> NNGPClassifier("convnet_gp").fit(X[:200], y[:200]).score(X[200:300], y[200:300]) > 0.9
    True
    """

    @classmethod
    def from_run(
        cls,
        path: str | Path,
        *,
        noise: Noise = 0.0,
        solver: Solver = "auto",
        engine: str = "auto",
        n_threads: int | None = None,
        verbose: bool = False,
    ) -> Self:
        """
        The classifier fitted on a finished run of ``save_kernels.py``: its kernel isn't computed again.

        Every byte that is read is verified; new images are whitened as the run's were. The classes are the run's class
        numbers, and noise="validation" uses the run's validation images. Fitted again, or cloned, it has the run's
        kernel, and whitens nothing.

        :param path: the run's folder, WORKDIR/RUN.
        :raises UserError: as :func:`cnn_gp.open_run`.
        """
        stored = open_run(path)
        run = stored.directory
        from ..kernels.description import kernel_from_description

        description, labels = run.description(), stored.labels
        self = cls(
            kernel_from_description(description.kernel),
            noise=noise,
            solver=solver,
            image_shape=description.image_shape,
            engine=engine,
            n_threads=n_threads,
            verbose=verbose,
        )
        self.classes_ = np.arange(description.n_classes)
        self.image_shape_ = description.image_shape
        self.kernel_description_ = description.kernel
        self.X_train_, raw = stored.images["X"], run.raw_images()["X"]
        self._zca = run.whitening()
        self._pixel_range = np.array([raw.min(), raw.max()])
        self.n_features_in_ = self.X_train_.shape[1]
        self._order = np.arange(description.N_train)

        def validation_loss(solution: Solution) -> float:
            (means,) = posterior_means(StoredKernel(run, "Kxvx"), [solution.alpha], description.N_vali)
            return error_percent(means, labels["Yv"])

        with as_value_errors(), silent(not verbose):
            self._check_noise_and_solver()
            self._solve(StoredGram(run), targets(labels["Y"], description.n_classes), validation_loss)
        return self

    def fit(self, X: Any, y: Any) -> Self:
        """
        :param X: [N, H, W], [N, H, W, C] or [N, D].
        :param y: [N] labels, of at least two classes.
        """
        with as_value_errors():
            X, y = validated(self, X, y, reset=True)
            check_classification_targets(y)
            self.classes_, numbers = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise InputError(
                    f"y has one class, {self.classes_[0]!r}; expected at least two classes: give more images."
                )
            self._fit(X, targets(numbers, len(self.classes_)))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The class [N] with the largest posterior mean."""
        means, _ = self._posterior(X, variances=False)
        return self.classes_[means.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities [N, classes] that a class's target, with the observation noise, is the largest."""
        means, variances = self._posterior(X, variances=True)
        of_targets = self._output_scale(self._solution.alpha) * (variances + self._solution.noise_variance)
        return np.exp(log_probabilities(means, of_targets))

    @property
    def loo_predictions_(self) -> np.ndarray:
        """The class [N] of each training image, had it been left out."""
        means = self._left_out_means()
        return self.classes_[means.argmax(axis=1)]

    @property
    def loo_score_(self) -> float:
        """The share of training images whose class would have been found, had they been left out."""
        return 1 - error_percent(self._left_out().means, self._targets.argmax(axis=1)) / 100

    def _output_scale(self, alpha: np.ndarray) -> float:
        return output_scale(self._targets, alpha)

    def _validation_loss(self, means: np.ndarray, Y: np.ndarray) -> float:
        return error_percent(means, Y.argmax(axis=1))


class NNGPRegressor(RegressorMixin, NNGPEstimator):
    """
    Gaussian process regression with the kernel of an infinitely wide network; the prior mean is 0.

    The parameters, and X, are those of :class:`NNGPClassifier`; y is [N] or [N, outputs], the outputs independent given
    the kernel. noise="loo" takes the largest log predictive density, "validation" the smallest squared error. The
    standard deviations are those at the kernel's factor of maximum marginal likelihood, one for each output, which
    leaves the means as they are. Targets far from 0 are better centred first
    (:class:`sklearn.compose.TransformedTargetRegressor`).

    :ivar noise_, jitter_, noise_search_, log_marginal_likelihood_: as the classifier's.
    :ivar loo_predictions_, loo_score_, loo_log_predictive_density_: leave-one-out; the score is R^2.
    :raises InputError: a ValueError, of one line, where a parameter, X or y can't be used.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """
        :param X: [N, H, W], [N, H, W, C] or [N, D].
        :param y: [N] or [N, outputs].
        """
        with as_value_errors():
            X, y = validated(self, X, y, reset=True, multi_output=True, y_numeric=True)
            self._one_output = y.ndim == 1
            self._fit(X, np.asarray(y, np.float64).reshape(len(y), -1))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """
        The posterior means, [N] or [N, outputs].

        :param return_std: also return the standard deviations of the latent function, without noise, of this shape.
        """
        means, variances = self._posterior(X, variances=return_std)
        if not return_std:
            return self._as_given(means)
        return self._as_given(means), self._as_given(
            np.sqrt(variances[:, None] * self._output_scale(self._solution.alpha))
        )

    @property
    def loo_predictions_(self) -> np.ndarray:
        """What each training image's targets would have been predicted to be, had it been left out."""
        return self._as_given(self._left_out_means())

    @property
    def loo_score_(self) -> float:
        """The coefficient of determination R^2 of these."""
        return float(r2_score(self._targets, self._left_out().means))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _as_given(self, outputs: np.ndarray) -> np.ndarray:
        return outputs[:, 0] if self._one_output else outputs

    def _output_scale(self, alpha: np.ndarray) -> np.ndarray:
        """[outputs]"""
        scales = [output_scale(y[:, None], a[:, None]) for y, a in zip(self._targets.T, alpha.T, strict=True)]
        # Targets that are all 0 have a scale of 0, for which there is no density.
        return np.maximum(scales, np.finfo(float).tiny)

    def _validation_loss(self, means: np.ndarray, Y: np.ndarray) -> float:
        return float(np.mean((means - Y) ** 2))
