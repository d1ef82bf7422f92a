"""Images as arrays: which are taken, how their pixels are scaled, and what a user should be told of them."""

import math
from collections.abc import Sequence

import numpy as np

from ..errors import UserError

#: Pixels below have squares that float32 holds with fewer digits, or not at all.
_SMALLEST_PIXEL = float(np.sqrt(np.finfo(np.float32).tiny))

#: The largest pixel of images may be so many times the training images', or a tenth, before it is remarked on.
_FAR = 4


def checked_images(name: str, x: np.ndarray) -> np.ndarray:
    """
    The images if they are uint8, or as float32 if they are floating-point and finite.

    :param name: of the array, for messages.
    :raises UserError: where they are something else.
    """
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise UserError(f"{name} has type {x.dtype.name}: give uint8 (0 to 255) or floating-point pixels.")
    # Cast first: a finite float64 may be too large for a float32.
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise UserError(f"{name} has pixels that aren't finite float32 numbers: correct or remove these images.")
    return x


def channels_first(name: str, x: np.ndarray) -> np.ndarray:
    """
    Images [N, C, H, W] of [N, H, W] or [N, H, W, C], or [N, D] as they are; uint8 or finite float32.

    :param name: of the array, for messages.
    :raises UserError: where they are something else.
    """
    if x.ndim not in (2, 3, 4):
        raise UserError(f"{name} has shape {x.shape}: give [N, H, W], [N, H, W, C] or [N, D]")
    x = checked_images(name, x)
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x[:, None]
    _, height, width, channels = x.shape
    if height in (1, 3) and width > 4 and channels > 4:
        raise UserError(
            f"{name} has shape {x.shape}, with channels first as it seems: give [N, H, W, C], which is "
            f"numpy.moveaxis(x, 1, -1); where these are {channels} channels of {height} x {width} pixels, swap H and W"
        )
    return np.moveaxis(x, -1, 1)


def flat_as_in_training(name: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """
    New images as :func:`flat_pixels` of the training images, [N, D] float32.

    :param x: [N, D] or [N, *shape], where the channels may come last, and one channel may be left out.
    :param shape: [C, *positions] of the training images.
    :raises UserError: where they have another shape, or aren't uint8 or finite floating-point numbers.
    """
    x = checked_images(name, x)
    if x.shape[1:] == (*shape[1:], shape[0]):
        x = np.moveaxis(x, -1, 1)
    elif x.shape[1:] not in ((math.prod(shape),), shape, shape[1:] if shape[0] == 1 else shape):
        raise UserError(
            f"{name} has images of shape {x.shape[1:]}; expected {shape} as in training, or flat [{math.prod(shape)}]."
        )
    return flat_pixels(x)


def flat_pixels(x: np.ndarray) -> np.ndarray:
    """Images [N, ...], as :func:`checked_images` returns them, as float32 [N, D]; 8-bit pixels become 0 to 1."""
    pixels = x.reshape(len(x), -1).astype(np.float32)
    return pixels * np.float32(1 / 255) if x.dtype == np.uint8 else pixels


def in_words(X: np.ndarray, shape: Sequence[int]) -> str:
    """
    How images were read: their size, and the range of their pixels.

    :param X: [N, D].
    :param shape: (C, H, W), or (D,) for inputs that aren't images.
    """
    values = f"values from {X.min():.3g} to {X.max():.3g}"
    channels, *positions = shape
    if not positions:
        return f"flat images of {channels} numbers, {values}; no layer convolves over them, as over [N, H, W]"
    return f"images of {' x '.join(map(str, positions))} pixels, {channels} channel{'s' * (channels > 1)}, {values}"


def range_warning(name: str, X: np.ndarray, training: np.ndarray) -> str | None:
    """One line where the pixels of images X [N, D] have another order of magnitude than the training images'."""
    largest, usual = (float(np.abs(x).max()) for x in (X, training))
    if usual / 10 <= largest <= _FAR * usual:
        return None
    return (
        f"warning: {name} have values from {X.min():.3g} to {X.max():.3g}, the training images from "
        f"{training.min():.3g} to {training.max():.3g}: check that they are scaled alike."
    )


def small_pixels_warning(name: str, X: np.ndarray) -> str | None:
    """One line where images X [N, D] have pixels whose squares are denormal in float32, which loses correlations."""
    tiny = np.abs(X) < _SMALLEST_PIXEL
    n_images = np.count_nonzero((tiny & (X != 0)).any(axis=1))
    if not n_images:
        return None
    return (
        f"warning: {n_images:,} of {name} have pixels between 0 and {_SMALLEST_PIXEL:.1e}, whose squares float32 can't "
        "hold: correlations of patches of such pixels are lost; scale the images, set these pixels to 0, or compute in "
        "float64 (--float_type=float64)."
    )
