"""
What docs/from_neural_tangents.md maps to this library, against values of neural-tangents 0.6.5.

tests/golden/make_neural_tangents.py has made them.
"""

import re

import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import (
    GELU,
    Abs,
    Conv,
    Cos,
    Dense,
    ElementwiseNumerical,
    ExReLU,
    LeakyReLU,
    NNGPKernel,
    NTKKernel,
    Sequential,
    Sin,
)
from cnn_gp.regression.ensemble import ensemble_variances
from cnn_gp.regression.gram_matrix import ArrayGram, ArrayKernel
from cnn_gp.regression.predict import posterior_means, posterior_variances
from cnn_gp.regression.solve import solve
from helpers.paths import ROOT

SHAPE = [2, 5, 4]
NONLINEARITIES = {
    "relu": ExReLU(),
    "leaky relu": LeakyReLU(0.2),
    "abs": Abs(),
    "gelu": GELU(),
    "sine": Sin(1.2, 0.8, 0.3),
    "cosine": Cos(0.9, 1.1, 0.4),
    "squared relu": ExReLU(2),
    "tanh": ElementwiseNumerical(tf.math.tanh, degree=32),
}
#: Relative differences: a quadrature of 32 points an axis has an error of its own.
TOLERANCES = {"tanh": 5e-3}
#: What neural-tangents has of an image with itself is not a number.
WITHOUT_DIAGONAL = ("squared relu",)
CLASSES = {"nngp": NNGPKernel, "ntk": NTKKernel}
NOISE = 1e-2


@pytest.fixture(scope="module")
def values():
    with np.load(ROOT / "tests" / "golden" / "neural_tangents.npz") as file:
        return dict(file)


def network(nonlinearity, padding="SAME"):
    def conv(size, W_std, b_std):
        return Conv(size, 1, padding, W_std**2, b_std**2, divide_by_patch=True)

    readout = Dense(1.2**2, 0.1**2)
    return Sequential(conv(3, 1.3, 0.3), nonlinearity, conv(2, 1.1, 0.2), nonlinearity, readout)


def flat(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


NETWORKS = {name: network(nonlinearity) for name, nonlinearity in NONLINEARITIES.items()}
NETWORKS["circular padding"] = network(ExReLU(), "CIRCULAR")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernels(values, name, kind):
    """Of three of the images: the quadrature takes its time."""
    kernel, X, X2 = CLASSES[kind](NETWORKS[name], SHAPE), flat(values["X"][:3]), flat(values["X2"])
    rtol = TOLERANCES.get(name, 1e-9)
    np.testing.assert_allclose(kernel(X, X2), values[f"{name}/{kind}"][:3], rtol=rtol)
    own, expected = kernel(X).numpy(), values[f"{name}/{kind}/own"][:3, :3]
    if name in WITHOUT_DIAGONAL:
        assert np.isnan(np.diag(expected)).all()
        np.fill_diagonal(own, 0)
        np.fill_diagonal(expected, 0)
    # Of an image with itself half the digits of an arc cosine are left.
    np.testing.assert_allclose(own, expected, rtol=max(rtol, 1e-7))


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("gp_inference", "nngp"),
        ("gradient_descent_mse_ensemble/nngp", "nngp"),
        ("gradient_descent_mse_ensemble/ntk", "ntk"),
    ],
)
def test_the_predictions(values, call, kind):
    X, X2, Y = flat(values["X"]), flat(values["X2"]), values["Y"]
    grams, kernels = {}, {}
    for name, cls in CLASSES.items():
        kernel = cls(NETWORKS["relu"], SHAPE)
        grams[name] = ArrayGram(kernel(X).numpy())
        kernels[name] = ArrayKernel(kernel(X2, X).numpy(), kernel.K_diag(X2).numpy())
    solution = solve(grams[kind], Y, noise=NOISE)
    (means,) = posterior_means(kernels[kind], [solution.alpha], len(X2))
    np.testing.assert_allclose(means, values[f"{call}/mean"], rtol=1e-7)
    if kind == "nngp":
        variances = posterior_variances(kernels[kind], solution, len(X2))
    else:
        variances, _ = ensemble_variances(kernels["ntk"], kernels["nngp"], grams["nngp"], solution, len(X2))
    np.testing.assert_allclose(variances, values[f"{call}/variance"], rtol=1e-7)


def test_every_nonlinearity_of_the_page_is_compared():
    page = (ROOT / "docs" / "from_neural_tangents.md").read_text()
    table = page.split("| nonlinearities and paddings |")[1].split("\n\n")[0]
    listed = {name for row in table.splitlines()[2:] for name in re.findall(r"(\w+)\(", row.split("|")[2])}
    compared = {type(nonlinearity).__name__ for nonlinearity in NONLINEARITIES.values()}
    assert listed == compared | {"Conv"}
