"""Images that are rotated, shifted or noisy, on which a model that was trained on upright ones is tried."""

import numpy as np
from scipy import ndimage

from ..errors import UserError


def corrupted(X: np.ndarray, image_shape: tuple[int, ...], kind: str, strength: float) -> np.ndarray:
    """
    Images [N, D], flattened channel first, after one of the changes of :data:`KINDS`; float32.

    :param strength: "rotation": degrees, counter-clockwise; "shift": pixels to the right, whole or not; "noise": the
        standard deviation over the range of the pixels of X. Pixels that come into the picture are 0, and all are kept
        within the range of X.
    :raises UserError: where images that aren't two-dimensional are to be rotated or shifted.
    """
    if kind == "noise":
        low, high = float(X.min()), float(X.max())
        deviations = np.random.default_rng(0).standard_normal(X.shape, dtype=np.float32)
        return np.clip(X + strength * (high - low) * deviations, low, high).astype(np.float32)
    if len(image_shape) != 3:
        raise UserError(f"Images of shape {image_shape} can't be changed by {kind}; expected (C, H, W).")
    images = X.reshape(-1, *image_shape)
    # Cubic splines, which blur less than linear interpolation: a blurred image has a smaller kernel K(x, x).
    if kind == "rotation":
        changed = ndimage.rotate(images, strength, axes=(2, 3), reshape=False)
    elif kind == "shift":
        changed = ndimage.shift(images, (0, 0, 0, strength))
    else:
        raise UserError(f"The change is {kind!r}; expected one of {', '.join(KINDS)}.")
    return np.clip(changed.reshape(X.shape), min(0.0, float(X.min())), float(X.max())).astype(np.float32)


KINDS = {
    "rotation": (15.0, 30.0, 45.0, 60.0, 75.0, 90.0),
    "shift": (1.0, 2.0, 4.0, 6.0, 8.0),
    "noise": (0.1, 0.2, 0.3, 0.5),
}
"""The changes of :func:`corrupted`, and the strengths that are tried where none is given."""
