"""
What is done to images before the kernel, in the field: whitening, standardisation, and more training images of them.

    classifier = make_pipeline(ZCA(), NNGPClassifier("myrtle5")).fit(*with_flips(images, labels))

Images are [N, H, W], [N, H, W, C] or [N, D]; 8-bit pixels are divided by 255.
"""

import math
from dataclasses import replace
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from ..errors import InputError, UserError
from .datasets import Dataset
from .images import checked_images, flat_pixels
from .validation import as_numbers, as_value_errors, validated

#: Images at a time: little memory beside the matrix.
_CHUNK = 1000


class _Preprocessing(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Takes images of any of the shapes, and returns float32 of the same."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """:param X: the training images [N, ...]; y is ignored."""
        with as_value_errors():
            self._fit(self._pixels(X, reset=True)[0])
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The images [N, ...], float32, in the shape that they have."""
        with as_value_errors():
            pixels, shape = self._pixels(X, reset=False)
            result = [self._transform(pixels[i : i + _CHUNK].astype(np.float64)) for i in range(0, len(pixels), _CHUNK)]
        return np.concatenate(result).astype(np.float32).reshape(shape)

    def _pixels(self, X: Any, *, reset: bool) -> tuple[np.ndarray, tuple[int, ...]]:
        X = validated(self, X, reset=reset)
        X = as_numbers(X) if X.ndim == 2 else X
        return flat_pixels(checked_images("X", X)), X.shape

    def _fit(self, pixels: np.ndarray) -> None:
        """From [N, D], float32."""

    def _transform(self, pixels: np.ndarray) -> np.ndarray:
        """Of some images [n, D], float64."""
        raise NotImplementedError

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


class ZCA(_Preprocessing):
    r"""
    Regularised ZCA whitening, to be fitted on the training images alone.

    With the training images' mean :math:`\mu` and covariance :math:`U \Lambda U^T`, over D pixels and channels,

    .. math:: x \mapsto U (\Lambda + \epsilon \bar\lambda I)^{-1/2} U^T (x - \mu),
        \quad \bar\lambda = \tfrac{1}{D} \operatorname{tr} \Lambda

    as in Lee et al. 2020 (arXiv:2007.15801), who standardise each image first: ``make_pipeline(Standardize(), ZCA())``.
    It takes a D x D matrix in float64, and some D^3 operations.

    :param regularization: :math:`\epsilon`, more than 0.
    :ivar mean_: :math:`\mu`, [D], float64.
    :ivar whitening_: the matrix, [D, D], float64.
    :raises InputError: a ValueError, where the images are all equal, or aren't uint8 or finite floating-point numbers.
    """

    def __init__(self, regularization: float = 1e-2) -> None:
        self.regularization = regularization

    def _fit(self, pixels: np.ndarray) -> None:
        if not 0 < self.regularization < math.inf:
            raise InputError(
                f"regularization is {self.regularization}; expected a finite number above 0, such as 1e-2."
            )
        # Pixels that never vary, such as a black border, stay exactly 0, not what rounding leaves of it.
        varies = pixels.min(axis=0) != pixels.max(axis=0)
        if not varies.any():
            raise InputError(f"All images are equal (n_samples={len(pixels)}); expected different ones to whiten.")
        self.mean_ = np.where(varies, pixels.mean(axis=0, dtype=np.float64), pixels[0])
        D, n = len(varies), np.count_nonzero(varies)
        covariance = np.zeros((n, n))
        for start in range(0, len(pixels), _CHUNK):
            centred = pixels[start : start + _CHUNK, varies] - self.mean_[varies]
            covariance += centred.T @ centred
        eigenvalues, U = np.linalg.eigh(covariance / len(pixels))
        added = self.regularization * eigenvalues.sum() / D
        self.whitening_ = np.eye(D) / np.sqrt(added)
        # Rounding leaves some of the smallest below 0.
        scales = 1 / np.sqrt(np.maximum(eigenvalues, 0) + added)
        self.whitening_[np.ix_(varies, varies)] = (U * scales) @ U.T

    def _transform(self, pixels: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        return (pixels - self.mean_) @ self.whitening_


class Standardize(_Preprocessing):
    """
    Each image by itself: its pixels' mean, over all channels, becomes 0 and their standard deviation 1.

    There is nothing to fit. An image of one value becomes 0.
    """

    def _transform(self, pixels: np.ndarray) -> np.ndarray:
        centred = pixels - pixels.mean(axis=1, keepdims=True)
        is_constant = pixels.min(axis=1) == pixels.max(axis=1)
        centred[is_constant] = 0
        deviations = np.where(is_constant, 1, centred.std(axis=1))
        return centred / deviations[:, None]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


def with_flips(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Each training image, followed by its mirror image, left and right exchanged: twice as many.

    :param X: [N, H, W] or [N, H, W, C].
    :param y: [N, ...], their labels or targets.
    :raises InputError: a ValueError, where X are no images, or there is another number of y.
    """
    X, y = _checked_pair(X, y)
    return _interleaved([X, X[:, :, ::-1]]), np.repeat(y, 2, axis=0)


def with_shifts(X: np.ndarray, y: np.ndarray, pixels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """
    Each training image, followed by itself shifted up, down, left and right: five times as many.

    What comes in at the edge is 0.

    :param X: [N, H, W] or [N, H, W, C].
    :param y: [N, ...], their labels or targets.
    :param pixels: how far, less than H and W.
    :raises InputError: a ValueError, where X are no images, are no larger, or there is another number of y.
    """
    X, y = _checked_pair(X, y)
    if not 1 <= pixels < min(X.shape[1:3]):
        raise InputError(f"pixels is {pixels} for images of {X.shape[1:3]}; expected 1 or more, and less than a side.")
    shifted = [X]
    for axis in (1, 2):
        for amount in (-pixels, pixels):
            one = np.roll(X, amount, axis)
            edge = slice(None, amount) if amount > 0 else slice(amount, None)
            one[(slice(None),) * axis + (edge,)] = 0
            shifted.append(one)
    return _interleaved(shifted), np.repeat(y, len(shifted), axis=0)


def with_flips_of_training(data: Dataset) -> Dataset:
    """
    A data set with the mirror image of each training image after it, as :func:`with_flips`.

    So the first n training images, which a learning curve takes, have their mirror images among them.

    :raises UserError: where the inputs are no images.
    """
    if len(data.image_shape) < 3:
        raise UserError(f"--flip mirrors images, and {data.name} has inputs of shape {data.image_shape}: leave it out.")
    X = data.X.reshape(-1, *data.image_shape)
    both = _interleaved([X, X[..., ::-1]]).reshape(-1, data.X.shape[1])
    return replace(data, X=both, Y=np.repeat(data.Y, 2))


def _checked_pair(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    X, y = np.asarray(X), np.asarray(y)
    if X.ndim not in (3, 4) or len(X) != len(y):
        raise InputError(f"X has shape {X.shape} and y {y.shape}; expected [N, H, W] or [N, H, W, C], and N of y.")
    return X, y


def _interleaved(copies: list[np.ndarray]) -> np.ndarray:
    """The first of all, the second of all, ...: [copies * N, ...]."""
    return np.stack(copies, axis=1).reshape(-1, *copies[0].shape[1:])
