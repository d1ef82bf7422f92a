"""
MNIST with a copy of each training image, moved by one pixel in one of eight directions; other images unchanged.

    python results/shifted_copies/make_data.py DATA_DIR mnist_shifted.npz
"""

import sys

import numpy as np

from cnn_gp.data import datasets

mnist = datasets.load("mnist", data_dir=sys.argv[1], N_vali=2000)
X, Xv, Xt = (np.rint(255 * images).astype(np.uint8).reshape(-1, 28, 28) for images in (mnist.X, mnist.Xv, mnist.Xt))
steps = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)])
chosen = steps[np.random.default_rng(0).integers(8, size=len(X))]
padded = np.pad(X, ((0, 0), (1, 1), (1, 1)))
moved = np.stack([image[1 + i : 29 + i, 1 + j : 29 + j] for image, (i, j) in zip(padded, chosen, strict=True)])
np.savez(
    sys.argv[2],
    x_train=np.concatenate([X, moved, Xv]),
    y_train=np.concatenate([mnist.Y, mnist.Y, mnist.Yv]),
    x_test=Xt,
    y_test=mnist.Yt,
)
