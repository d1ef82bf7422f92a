"""scikit-learn's checks of X and y, for images too: what its estimators and transformers here have in common."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from ..errors import InputError, UserError


def validated(estimator: Any, X: Any, y: Any = "no_validation", *, reset: bool, **checks: Any) -> Any:
    """
    X [N, ...], in its shape, and y where it is given, after scikit-learn's checks.

    :param reset: whether the number of features is set, in ``fit``, or compared.
    :param checks: of :func:`sklearn.utils.validation.validate_data`.
    """
    X = X if hasattr(X, "ndim") else np.asarray(X)
    shape = X.shape
    if X.ndim > 2:
        X = np.asarray(X).reshape(len(X), math.prod(shape[1:]))
    checked = validate_data(estimator, X, y, reset=reset, **checks)
    if isinstance(checked, tuple):
        return checked[0].reshape(shape), checked[1]
    return checked.reshape(shape)


def as_numbers(X: np.ndarray) -> np.ndarray:
    """Vectors, which unlike images may be of whole numbers: these as floating-point ones; uint8 stays."""
    return X.astype(np.float32) if X.dtype.kind in "biu" and X.dtype != np.uint8 else X


@contextmanager
def as_value_errors() -> Iterator[None]:
    """In its block a user's error is a ValueError, which scikit-learn expects."""
    try:
        yield
    except UserError as error:
        if isinstance(error, ValueError):
            raise
        raise InputError(str(error)) from error
