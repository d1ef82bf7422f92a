"""The models by name, and the random search's draws under both readings."""

import json

import numpy as np
import pytest

from cnn_gp import AvgPool, Conv, Dense, ExReLU, NNGPKernel, Sequential
from cnn_gp.errors import ShrunkMapError, UserError
from cnn_gp.kernels.architectures import build_kernel, parse_pool, run_name
from cnn_gp.kernels.random_search import SEARCH_SEEDS, draw_architecture
from helpers.paths import GOLDEN

TABLES = json.loads((GOLDEN / "params_by_seed.json").read_text())


@pytest.mark.parametrize("reading", ["published", "released"])
def test_draws_are_the_papers(reading):
    table = TABLES[f"as_{reading}"]
    assert {int(seed) for seed in table} == set(SEARCH_SEEDS)
    for seed, expected in table.items():
        drawn = draw_architecture(int(seed), skip_rule=reading)
        sizes = expected["filter_sizes"]
        n = expected["n_layers"]
        assert drawn.filter_sizes == (tuple(sizes) if isinstance(sizes, list) else (sizes,) * n), seed
        padding = expected["padding"]
        assert drawn.paddings == (tuple(padding) if isinstance(padding, list) else (padding,) * n), seed
        assert drawn.strides == (expected["strides"],) * n
        assert drawn.nonlinearity == expected["nlin"]
        assert drawn.skip_freq == expected["skip_freq"]
        assert (drawn.var_weight, drawn.var_bias) == (expected["var_weight"], expected["var_bias"])


def test_nine_of_the_published_seeds_shrink_below_a_pixel():
    shrunk = []
    for seed in SEARCH_SEEDS:
        try:
            build_kernel("random", [1, 28, 28], seed=seed)
        except ShrunkMapError:
            shrunk.append(seed)
    assert shrunk == [3, 5, 7, 18, 20, 24, 27, 32, 56]


def test_as_released_only_seed_56_shrinks():
    shrunk = []
    for seed in SEARCH_SEEDS:
        try:
            build_kernel("random", [1, 28, 28], seed=seed, skip_rule="released")
        except ShrunkMapError:
            shrunk.append(seed)
    assert shrunk == [56]


@pytest.mark.parametrize(("model", "seed"), [("convnet_gp", 31), ("residual_cnn_gp", 53)])
def test_the_named_networks_are_the_searchs(model, seed):
    named, drawn = (build_kernel(m, [1, 28, 28], seed=seed).describe() for m in (model, "random"))
    assert named == drawn


def test_allow_skip_by_hand():
    assert draw_architecture(31, allow_skip=True).skip_freq > 0
    assert len(draw_architecture(40, allow_skip=False).filter_sizes) <= 8
    assert draw_architecture(40, allow_skip=False).skip_freq == -1
    assert draw_architecture(99).skip_freq == -1


def test_resnet_has_the_depth():
    kernel = build_kernel("resnet_gp", [1, 28, 28], depth=20)
    convolutions = json.dumps(kernel.describe()).count('"Conv"')
    # The first, two in each of nine units, three shortcuts.
    assert convolutions == 1 + 18 + 3


def test_overrides():
    kernel = build_kernel("convnet_gp", [1, 8, 8], var_weight=1.5, var_bias=0.0, multiply_by_sqrt2=False)
    text = json.dumps(kernel.describe())
    assert '"multiply_by_sqrt2": false' in text and '"multiply_by_sqrt2": true' not in text
    assert kernel.var_weight.numpy() == pytest.approx(1.5) and kernel.var_bias.numpy() == 0


@pytest.mark.parametrize(
    ("name", "value"), [("depth", 14), ("n_blocks", 2), ("allow_skip", True), ("skip_rule", "released")]
)
def test_an_argument_of_another_model_is_refused(name, value):
    with pytest.raises(UserError, match=f"{name} is given for myrtle5, and only .* has it: leave it out"):
        build_kernel("myrtle5", [1, 32, 32], **{name: value})


def test_run_names():
    assert [run_name("random", 7), run_name("random", 1234), run_name("resnet_gp", 7)] == [
        "seed_07",
        "seed_1234",
        "resnet_gp",
    ]
    assert run_name("resnet_gp", 7, "ntk") == "resnet_gp_ntk"
    assert run_name("convnet_gp", 7, pool=5) == "convnet_gp_pool_5"
    assert run_name("random", 7, "ntk", "global") == "seed_07_pool_global_ntk"


def test_pools_by_name():
    assert [parse_pool(text) for text in ("none", "global", "5")] == [None, "global", 5]
    for text in ("0", "-1", "2x2", "", "99999", "\u0665\u0665x"):
        with pytest.raises(
            UserError, match="expected none, global, or how many positions of the feature map on a side: --pool=5"
        ):
            parse_pool(text)


@pytest.mark.parametrize("model", ["convnet_gp", "residual_cnn_gp", "resnet_gp"])
@pytest.mark.parametrize("pool", [3, "global"])
def test_a_pool_goes_before_the_first_dense_layer(model, pool, rng):
    plain, pooled = (build_kernel(model, [1, 9, 8], pool=p) for p in (None, pool))
    described = plain.describe()["network"]["layers"]
    first = next(i for i, layer in enumerate(described) if layer["layer"] == "Dense")
    inserted = {"layer": "GlobalAvgPool"}
    if pool == 3:
        inserted = {"layer": "AvgPool", "size": 3, "stride": 1, "padding": "SAME"}
    expected = [*described[:first], inserted, *described[first:]]
    assert pooled.describe()["network"]["layers"] == expected
    assert "kernel" not in pooled.describe()
    ntk = build_kernel(model, [1, 9, 8], kernel="ntk", pool=pool)
    assert ntk.describe() == {**pooled.describe(), "kernel": "ntk"}
    assert build_kernel(model, [1, 9, 8], kernel="ntk").describe() == {**plain.describe(), "kernel": "ntk"}


def test_a_pool_of_one_pixel_changes_nothing(rng):
    X = rng.random((3, 64))
    plain, pooled = (build_kernel("convnet_gp", [1, 8, 8], pool=pool)(X) for pool in (None, 1))
    np.testing.assert_array_equal(plain, pooled)


@pytest.mark.parametrize(("model", "convolutions"), [("myrtle5", [2, 1, 1]), ("myrtle7", [2, 2, 2])])
def test_myrtle_networks(model, convolutions, rng):
    """As in Shankar et al. 2020: at 32 x 32 three pools of 2 x 2 in a row at the end, which are the global one."""
    kernel = build_kernel(model, [3, 8, 8])
    layers = []
    for n in convolutions:
        layers += [Conv(3, var_weight=2.0, divide_by_patch=True), ExReLU()] * n + [AvgPool(2)]
    by_hand = NNGPKernel(Sequential(*layers, Dense(2.0)), [3, 8, 8])
    X = rng.random((3, 192))
    np.testing.assert_allclose(kernel(X), by_hand(X), rtol=1e-12)
    assert build_kernel(model, [3, 9, 11]).n_covariances > kernel.n_covariances


def test_the_cost_of_pools():
    """Of a 5 x 5 pool 81 displacements; of the global pool all that the map has."""
    plain, five, whole = (build_kernel("convnet_gp", [1, 28, 28], pool=pool) for pool in (None, 5, "global"))
    assert [k.n_displacements for k in (plain, five, whole)] == [1, 81, 55**2]
    assert five.n_covariances / plain.n_covariances == pytest.approx(81, rel=1e-3)
    strided = build_kernel("resnet_gp", [1, 28, 28], pool="global")
    assert strided.n_displacements == 13**2


@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 9, 7], [2, 12], [10], [1, 4, 4, 4]])
@pytest.mark.parametrize("model", ["convnet_gp", "residual_cnn_gp", "resnet_gp"])
def test_the_named_networks_take_images_of_any_rank(model, shape, rng):
    kernel = build_kernel(model, shape)
    X = rng.random((2, int(np.prod(shape))))
    assert np.linalg.eigvalsh(kernel(X))[0] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "resnet"}, "The model is 'resnet'; expected one of convnet_gp"),
        ({"model": "resnet_gp", "depth": 33}, r"depth is 33 with 3 blocks; expected .* 8, 14, 20, 26, 32"),
        ({"model": "resnet_gp", "depth": 2}, "depth is 2"),
        ({"model": "random", "seed": -1}, "The seed is -1"),
        ({"model": "random", "skip_rule": "mine"}, "The skip rule is 'mine'"),
        ({"model": "random", "seed": 1, "multiply_by_sqrt2": True}, "seed_01, whose nonlinearity is the erf"),
        ({"model": "convnet_gp", "kernel": "gp"}, "The kernel is 'gp'; expected one of nngp, ntk"),
        ({"model": "myrtle5", "pool": 2}, r"A pool \(2\) is asked for where the map before the readout is one pixel"),
        ({"model": "convnet_gp", "var_weight": -1.0}, "var_weight is -1.0; expected"),
    ],
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        build_kernel(**arguments, input_shape=[1, 28, 28])


@pytest.mark.parametrize("shape", [[1, 7, 28], [3, 16], [100]])
def test_myrtle_networks_need_images(shape):
    with pytest.raises(UserError, match=r"expected .channels, height, width. with at least 8 pixels on a side"):
        build_kernel("myrtle7", shape)
