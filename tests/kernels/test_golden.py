"""Kernel values of the authors' 2019 program, and every network of the random search in float32."""

import gzip
import json

import numpy as np
import pytest

from cnn_gp import DeepKernel, ExErf, ExReLU, ResnetKernel
from cnn_gp.engines.fused.engine import FusedEngine
from cnn_gp.engines.fused.lowering import lower
from cnn_gp.errors import ShrunkMapError
from helpers.paths import GOLDEN, SHARED, golden_manifest

NONLINEARITIES = {"ExReLU": ExReLU, "ExErf": ExErf}
KERNELS = {"DeepKernel": DeepKernel, "ResnetKernel": ResnetKernel}
MNIST = SHARED / "golden" / "manifest.json"
MANIFEST = golden_manifest()
if MNIST.is_file():
    MNIST_MANIFEST = {k: v for k, v in json.loads(MNIST.read_text()).items() if v["input"] == "mnist"}
else:
    MNIST_MANIFEST = {"the MNIST cases": None}


def build(case):
    nonlinearity = NONLINEARITIES[case["nonlinearity"]](**case["nonlinearity_kwargs"])
    return KERNELS[case["kernel"]](recurse_kern=nonlinearity, **case["kwargs"])


def check(case, X, X2, K_XX, K_XX2):
    """Both engines against the reference values."""
    kernel = build(case)
    erf, step = case["nonlinearity"] == "ExErf", case["nonlinearity_kwargs"].get("exponent") == 0
    deep_erf = erf and len(case["kwargs"]["filter_sizes"]) > 8
    for dtype, tolerance in ((np.float64, 1e-7 if deep_erf else 1e-9), (np.float32, 1e-5 if erf else 3e-6)):
        x, x2 = X.astype(dtype), X2.astype(dtype)
        values = kernel(x).numpy(), kernel(x, x2).numpy(), kernel(x, full_cov=False).numpy()
        check_values(case, *values, K_XX, K_XX2, tolerance)
    engine = FusedEngine(lower(kernel))
    x, x2 = X.astype(np.float32), X2.astype(np.float32)
    tolerance = 1e-5 if erf else 1e-3 if step else 2e-6
    check_values(case, engine.matrix(x), engine.matrix(x, x2), engine.diag(x), K_XX, K_XX2, tolerance)


def check_values(case, K, cross, variances, K_XX, K_XX2, tolerance):
    off = ~np.eye(len(K), dtype=bool)
    np.testing.assert_allclose(K[off], K_XX[off], rtol=tolerance)
    np.testing.assert_allclose(cross, K_XX2, rtol=tolerance)
    np.testing.assert_array_equal(np.diag(K), variances)
    if case["nonlinearity_kwargs"].get("exponent") == 0:
        # The reference's arccosine near 1 is off here: each step gives 1/2, so its readout is exact.
        var_weight, var_bias = case["kwargs"]["var_weight"], case["kwargs"]["var_bias"]
        np.testing.assert_allclose(np.diag(K), 0.5 * var_weight + var_bias, rtol=1e-6)
    else:
        np.testing.assert_allclose(np.diag(K), np.diag(K_XX), rtol=tolerance)


@pytest.mark.parametrize("name", MANIFEST)
def test_made_images(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        case = dict(file)
    X, X2 = case["X"], case["X2"]
    if MANIFEST[name]["input"] == "uint8":
        X, X2 = X / 255, X2 / 255
    check(MANIFEST[name], X, X2, case["K_XX"], case["K_XX2"])


@pytest.mark.parametrize("name", MNIST_MANIFEST)
def test_mnist(name, mnist_dir):
    if not MNIST.is_file():
        pytest.skip("the reference values on MNIST aren't beside this checkout (../shared/golden)")

    def pixels(file, rows):
        data = gzip.decompress((mnist_dir / file).read_bytes())
        images = np.frombuffer(data, np.uint8, offset=16).reshape(-1, 784)[rows]
        return (images.astype(np.float32) * np.float32(1 / 255)).astype(np.float64)

    with np.load(MNIST.with_name(f"{name}.npz")) as file:
        case = dict(file)
    # The first rows of each: the whole takes minutes.
    X = pixels("train-images-idx3-ubyte.gz", case["mnist_train_index"][:9])
    X2 = pixels("t10k-images-idx3-ubyte.gz", case["mnist_test_index"][:5])
    check(MNIST_MANIFEST[name], X, X2, case["K_XX"][:9, :9], case["K_XX2"][:9, :5])


def searched(reading):
    """The networks of the random search under a reading of its rule for skips: seed -> hyperparameters."""
    return json.loads((GOLDEN / "params_by_seed.json").read_text())[f"as_{reading}"]


def searched_under_both_readings():
    """Each network once: the two readings differ only where the skips do."""
    published, released = searched("published"), searched("released")
    networks = [("published", seed) for seed in published]
    networks += [("released", seed) for seed in released if released[seed]["skip_freq"] != published[seed]["skip_freq"]]
    for reading, seed in sorted(networks, key=lambda network: (network[0], int(network[1]))):
        yield pytest.param(searched(reading)[seed], id=f"{reading}-{seed}")


def test_the_readings_differ_only_in_skips():
    """And in the padding and stride 1 that a skip forces."""
    published, released = searched("published"), searched("released")
    assert set(published) == set(released)
    for seed, p in published.items():
        others = set(p) & set(released[seed]) - {"skip_freq", "padding", "strides"}
        assert {k: p[k] for k in others} == {k: released[seed][k] for k in others}
        if p["skip_freq"] == released[seed]["skip_freq"]:
            assert (p["padding"], p["strides"]) == (released[seed]["padding"], released[seed]["strides"])


@pytest.mark.parametrize("p", searched_under_both_readings())
def test_every_searched_network_is_finite_in_float32(p):
    if p["seed"] == 1234:
        sizes, strides, padding = p["filter_sizes"], None, p["padding"]
    else:
        sizes, strides, padding = [p["filter_sizes"]] * p["n_layers"], [p["strides"]] * p["n_layers"], p["padding"]
    nonlinearity = ExErf() if p["nlin"] == "ExErf" else ExReLU(multiply_by_sqrt2=True)

    def make():
        return DeepKernel(
            [1, 28, 28], sizes, nonlinearity, p["var_weight"], p["var_bias"], padding, strides, skip_freq=p["skip_freq"]
        )

    # As released, only seed 56 shrinks: the table doesn't say so.
    if not p.get("predicted_ok", p["seed"] != 56):
        with pytest.raises(ShrunkMapError):
            make()
        return
    with np.load(GOLDEN / "strokes_resnet_gp.npz") as file:
        X = (file["X"][:3] / 255).astype(np.float32)
    K = make()(X).numpy()
    assert np.isfinite(K).all()
    assert (np.diag(K) > 0).all()
    # The correlations of different images are below 1: the kernel isn't ruined.
    deviations = np.sqrt(np.diag(K).astype(np.float64))
    correlations = K / np.outer(deviations, deviations)
    assert (np.abs(correlations[np.triu_indices(3, 1)]) <= 1 + 1e-6).all()
