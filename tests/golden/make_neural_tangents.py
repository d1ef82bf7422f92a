"""
Makes neural_tangents.npz, with neural-tangents 0.6.5 in float64 (it isn't installed with the tests).

For each network its kernels of X and X2; of one of them what `nt.predict` makes of the images X with targets Y.
"""

import sys

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import neural_tangents as nt  # noqa: E402
from neural_tangents import stax  # noqa: E402

NONLINEARITIES = {
    "relu": stax.Relu(),
    "leaky relu": stax.LeakyRelu(0.2),
    "abs": stax.Abs(),
    "gelu": stax.Gelu(),
    "sine": stax.Sin(1.2, 0.8, 0.3),
    "cosine": stax.Cos(0.9, 1.1, 0.4),
    "squared relu": stax.RectifiedMonomial(2),
    "tanh": stax.ElementwiseNumerical(jax.numpy.tanh, 120, df=lambda x: 1 - jax.numpy.tanh(x) ** 2),
}
NOISE = 1e-2


def network(nonlinearity, padding="SAME"):
    """Two convolutions and a readout."""
    return stax.serial(
        stax.Conv(1, (3, 3), padding=padding, W_std=1.3, b_std=0.3),
        nonlinearity,
        stax.Conv(1, (2, 2), padding=padding, W_std=1.1, b_std=0.2),
        nonlinearity,
        stax.Flatten(),
        stax.Dense(1, W_std=1.2, b_std=0.1),
    )[2]


rng = np.random.default_rng(0)
X, X2, Y = rng.normal(size=(6, 5, 4, 2)), rng.normal(size=(3, 5, 4, 2)), rng.normal(size=(6, 2))
found = {"X": X, "X2": X2, "Y": Y}
kernels = {name: network(nonlinearity) for name, nonlinearity in NONLINEARITIES.items()}
kernels["circular padding"] = network(stax.Relu(), "CIRCULAR")
for name, kernel in kernels.items():
    for kind in ("nngp", "ntk"):
        found[f"{name}/{kind}"] = np.asarray(kernel(X, X2, kind))
        found[f"{name}/{kind}/own"] = np.asarray(kernel(X, None, kind))

kernel = kernels["relu"]
inference = nt.predict.gp_inference(kernel(X, None, ("nngp", "ntk")), Y, diag_reg=NOISE)
ensemble = nt.predict.gradient_descent_mse_ensemble(kernel, X, Y, diag_reg=NOISE)
for call, posterior in {
    "gp_inference": inference("nngp", kernel(X2, X, ("nngp", "ntk")), kernel(X2, None, "nngp")),
    "gradient_descent_mse_ensemble/nngp": ensemble(x_test=X2, get="nngp", compute_cov=True),
    "gradient_descent_mse_ensemble/ntk": ensemble(x_test=X2, get="ntk", compute_cov=True),
}.items():
    found[f"{call}/mean"] = np.asarray(posterior.mean)
    found[f"{call}/variance"] = np.diag(np.asarray(posterior.covariance))
np.savez_compressed(sys.argv[1], **found)
