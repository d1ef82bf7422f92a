"""Average pooling, for both kernels: stored values, all covariances between positions, and what pooling implies."""

import itertools
import json
import re

import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import AvgPool, Conv, Dense, ExErf, ExReLU, GlobalAvgPool, NNGPKernel, NTKKernel, Sequential, Sum
from cnn_gp.errors import ShrunkMapError
from cnn_gp.kernels import layers, pooling
from cnn_gp.kernels.displacements import Displacements
from cnn_gp.kernels.layer import layer_from_description
from helpers import reference
from helpers.paths import GOLDEN, ROOT

STORED = GOLDEN / "pooling_ntk"
MANIFEST = json.loads((STORED / "manifest.json").read_text())

# Of random images, relative. Measured: 4e-15 in float64; in float32 2.3e-7, at the fully connected network.
TOLERANCE = {np.float64: 1e-9, np.float32: 5e-7}


def relu(sqrt2=True):
    return ExReLU(multiply_by_sqrt2=sqrt2)


def conv(size, stride=1, padding="SAME", bias=0.3):
    return Conv(size, stride, padding, 1.7, bias, divide_by_patch=True)


NETWORKS = {
    "in the middle, even, SAME": (
        [2, 5, 4],
        [conv(3), relu(), AvgPool(2, 1, "SAME"), conv(2), relu(), Dense(1.3, 0.1)],
    ),
    "two pools": ([1, 7, 6], [conv(3), relu(), AvgPool(2), conv(2), ExErf(), AvgPool((2, 3), 1), relu(), Dense()]),
    "overlapping, with strides": (
        [1, 9, 8],
        [conv(3, 2), relu(), AvgPool(3, 2, "SAME"), relu(), GlobalAvgPool(), Dense()],
    ),
    "a stride above the size": ([1, 7, 7], [conv(3), relu(), AvgPool(2, 3), conv(2), relu(), GlobalAvgPool(), Dense()]),
    "one pixel of each window": ([1, 5, 5], [conv(3), relu(), AvgPool(1, 2), relu(), GlobalAvgPool(), Dense()]),
    "one axis": ([3, 9], [conv(4), relu(), AvgPool(3, 1), conv(2, 2), relu(), GlobalAvgPool(), Dense()]),
    "three axes": ([1, 3, 4, 2], [conv(2), relu(), AvgPool((2, 2, 1)), relu(), GlobalAvgPool(), Dense()]),
    "in branches": (
        [2, 4, 4],
        [
            conv(3),
            Sum(Sequential(), Sequential(relu(), AvgPool(3, 1, "SAME"), conv(2))),
            Sum(conv(1, 2), AvgPool(2), Sequential(relu(), conv(3, 2))),
            relu(),
            GlobalAvgPool(),
            Dense(),
        ],
    ),
    "all branches end in a pixel": (
        [1, 4, 3],
        [conv(3), relu(), Sum(GlobalAvgPool(), Dense(), Sequential(conv(2), GlobalAvgPool()))],
    ),
    "of the image, FIXED padding": ([2, 6, 6], [AvgPool(2, 1), conv(3, 2, "FIXED"), relu(), GlobalAvgPool(), Dense()]),
    "layers after the pool": ([1, 4, 4], [conv(3), relu(), GlobalAvgPool(), Dense(2.0, 0.1), relu(), Dense()]),
}


def both_kernels(network, input_shape, X, X2=None):
    """K and T [2, N, M] in one propagation."""
    kernel = NTKKernel(network, input_shape)
    kernels = network.propagate(kernel.input_state(tf.constant(X), tf.constant(X if X2 is None else X2))).kernels
    return np.array([kernels.nngp.cross, kernels.ntk.cross])


@pytest.mark.parametrize("name", MANIFEST)
def test_stored_values(name, monkeypatch):
    """Of neural-tangents 0.6.5, but for the diagonal of the neural tangent kernel, where it is off by 6e-10."""
    monkeypatch.setattr(pooling, "HELD", 1 << 22)
    case = MANIFEST[name]
    network, shape = layer_from_description(case["network"]), case["input_shape"]
    with np.load(STORED / f"{name}.npz") as file:
        values = dict(file)
    X, off = np.concatenate([values["X"], values["X2"]]), ~np.eye(4, dtype=bool)
    for dtype, tolerance in TOLERANCE.items():
        K, T = both_kernels(network, shape, X[:4].astype(dtype), X.astype(dtype))
        assert K.dtype == T.dtype == dtype
        np.testing.assert_allclose(K, np.hstack([values["nngp_XX"], values["nngp_XX2"]]), rtol=tolerance)
        np.testing.assert_allclose(T[:, 4:], values["ntk_XX2"], rtol=tolerance)
        np.testing.assert_allclose(T[:, :4][off], values["ntk_XX"][off], rtol=tolerance)
        variances = NTKKernel(network, shape)(X[:4].astype(dtype), full_cov=False)
        np.testing.assert_allclose(variances, np.diag(values["ntk_XX"]), rtol=tolerance)
    K = NNGPKernel(network, shape)(X[:4].astype(np.float32), X[4:].astype(np.float32))
    np.testing.assert_allclose(K, values["nngp_XX2"], rtol=TOLERANCE[np.float32])


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_recursion_of_all_covariances_between_positions(name, rng):
    shape, network = NETWORKS[name][0], Sequential(*NETWORKS[name][1])
    x, y = rng.normal(size=(2, *shape))
    expected = reference.pooled(network.describe(), x, y)
    values = both_kernels(network, shape, x.reshape(1, -1), y.reshape(1, -1))[:, 0, 0]
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    K, T = reference.pooled(network.describe(), x, x)
    x = x.reshape(1, -1)
    np.testing.assert_allclose(NNGPKernel(network, shape)(x, full_cov=False), [K], rtol=1e-12)
    np.testing.assert_allclose(NTKKernel(network, shape)(x, full_cov=False), [T], rtol=1e-12)


@pytest.mark.parametrize("name", ["in the middle, even, SAME", "two pools", "one axis"])
@pytest.mark.parametrize("n_boxes", ["each difference", "a few boxes"])
def test_a_loop_over_the_differences_gives_the_same(name, n_boxes, monkeypatch, rng):
    shape, network = NETWORKS[name][0], Sequential(*NETWORKS[name][1])
    X, X2 = rng.normal(size=(2, np.prod(shape))), rng.normal(size=(1, np.prod(shape)))
    monkeypatch.setattr(pooling, "HELD", 1 << 24)
    at_once = both_kernels(network, shape, X, X2)
    boxes = pooling.boxes
    most = 1 if n_boxes == "each difference" else 2
    monkeypatch.setattr(pooling, "boxes", lambda sizes, left: boxes(sizes, left and most))
    np.testing.assert_allclose(both_kernels(network, shape, X, X2), at_once, rtol=1e-13)


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (1, 4), (2, 1, 2)])
@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 100])
def test_boxes_cover_each_difference_once(sizes, most):
    corners, offsets = pooling.boxes(sizes, most)
    assert len(offsets) <= most
    covered = [tuple(d) for d in (corners[:, None] + offsets).reshape(-1, len(sizes))]
    assert len(set(covered)) == len(covered)
    assert set(itertools.product(*(range(1 - size, size) for size in sizes))) <= set(covered)


@pytest.mark.parametrize("name", ["in the middle, even, SAME", "one axis"])
@pytest.mark.parametrize("cls", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gram_matrix_is_symmetric_positive_has_the_diagonal_and_no_blocks(name, cls, dtype, rng):
    shape, network = NETWORKS[name][0], Sequential(*NETWORKS[name][1])
    kernel = cls(network, shape)
    X = rng.normal(size=(7, kernel.input_size)).astype(dtype)
    K = kernel(X).numpy()
    assert K.dtype == dtype
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(np.diag(K), kernel(X, full_cov=False))
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    assert np.linalg.eigvalsh(K.astype(np.float64))[0] >= -tolerance * K.max()
    np.testing.assert_allclose(kernel(X[:2], X[2:]), K[:2, 2:], rtol=tolerance)


@pytest.mark.parametrize("cls", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_pool_of_one_pixel_is_the_plain_kernel_to_the_last_bit(cls, dtype, rng):
    X, X2 = (rng.normal(size=(n, 60)).astype(dtype) for n in (4, 3))
    shape, before, after = [3, 5, 4], [conv(3), relu()], [conv(2), relu(), Dense(1.3, 0.2)]
    plain, pooled = (cls(Sequential(*before, *pool, *after), shape) for pool in ([], [AvgPool(1)]))
    np.testing.assert_array_equal(pooled(X, X2), plain(X, X2))
    np.testing.assert_array_equal(pooled(X), plain(X))


@pytest.mark.parametrize("cls", [NNGPKernel, NTKKernel])
def test_the_global_pool_does_not_see_where_the_image_is(cls, rng):
    """In a black frame that is wider than the receptive field, 4 pixels, and without padding."""
    network = Sequential(conv(3, padding="VALID"), relu(), conv(2, padding="VALID"), relu(), GlobalAvgPool(), Dense())
    image, other = rng.normal(size=(2, 3, 3))

    def placed(image, row, column):
        return np.pad(image, [(row, 10 - row), (column, 10 - column)]).ravel()

    kernel = cls(network, [1, 13, 13])
    X = np.array([placed(image, 5, 5), placed(image, 3, 7), placed(image, 7, 4)])
    K = kernel(X, placed(other, 5, 5)[None]).numpy().ravel()
    np.testing.assert_allclose(K[1:], K[0], rtol=1e-12)
    own = kernel(X)
    np.testing.assert_allclose(own, np.full([3, 3], own[0, 0]), rtol=1e-7)
    readout = cls(Sequential(*network.layers[:-2], Dense()), [1, 13, 13])
    here, there = readout(X[:1], X[:2])[0]
    assert there < 0.99 * here


def test_compiled_and_with_unknown_numbers_of_images(monkeypatch, rng):
    """With a loop over differences, inside which is another pool."""
    monkeypatch.setattr(pooling, "HELD", 1)
    network = Sequential(conv(3), relu(), AvgPool(2), conv(2), relu(), AvgPool(2, 1), Dense())
    kernel = NNGPKernel(network, [2, 8])
    X, X2 = rng.normal(size=(3, 16)), rng.normal(size=(2, 16))
    signature = [tf.TensorSpec([None, 16], tf.float64)] * 2
    graph = tf.function(lambda a, b: kernel(a, b), input_signature=signature, autograph=False)
    compiled = tf.function(lambda a, b: kernel(a, b), jit_compile=True, autograph=False)
    for function in (graph, compiled):
        np.testing.assert_allclose(function(X, X2), kernel(X, X2), rtol=1e-12)


def test_a_pool_larger_than_its_map_has_no_kernel():
    with pytest.raises(ShrunkMapError, match="a window of 5 with padding VALID on 4 pixels"):
        NNGPKernel(Sequential(AvgPool(2), AvgPool(5), Dense()), [1, 8, 8])


def test_displacements_once_each():
    d = Displacements(tf.constant([10, 0]), np.array([[0, 0], [0, 1]]))
    sums, index = d.times([1, 2]).plus(Displacements(tf.constant([-1, -1]), np.array([[0, 0], [0, 2], [1, 0]])))
    assert len(sums) == 5
    first = np.array([[9, -1], [9, 1], [10, -1], [9, 1], [9, 3], [10, 1]])
    np.testing.assert_array_equal((sums.origin + sums.offsets).numpy()[index.ravel()], first)
    assert d.times([1, 1]) is d and d.times([2, 2]) is d.times([2, 2])


def test_the_branches_of_a_sum_share_what_is_before_it():
    """Else residual networks would take twice the time with each unit."""
    asked = []

    class Counted(layers.ChannelMix):
        def propagate(self, state):
            return state.then(lambda kernels, d: asked.append(d) or kernels)

    unit = Sum(Sequential(), Sequential(relu(), conv(3)))
    network = Sequential(Counted(), *[unit] * 10, Sum(conv(1, 2), conv(3, 2)), GlobalAvgPool(), Dense())
    NNGPKernel(network, [1, 4, 4])(np.ones([2, 16]))
    # Of the pairs and of the variances: at displacement 0, and at those of the pool, which are one box.
    assert len(asked) == 4


def test_the_page_for_users_of_neural_tangents_lists_the_layers_of_the_stored_networks_and_no_other():
    table = (ROOT / "docs" / "from_neural_tangents.md").read_text().split("| `stax` | here |")[1].split("\n\n")[0]
    listed = {name for row in table.splitlines()[2:] for name in re.findall(r"(\w+)\(", row.split("|")[2])}
    stored = set(re.findall(r'"layer": "(\w+)"', json.dumps(MANIFEST)))
    assert listed == stored
