"""Everything that regression does gives the same from a run's directory and from arrays in memory."""

import dataclasses
import pickle

import numpy as np
import pytest

from cnn_gp.regression.gram_matrix import ArrayGram, ArrayKernel, gram_times, leading_rows
from cnn_gp.regression.learning_curve import learning_curve
from cnn_gp.regression.leave_one_out import leave_one_out
from cnn_gp.regression.lower_triangle import assemble
from cnn_gp.regression.memory_needs import check_memory, has_memory
from cnn_gp.regression.predict import ValidationKernel, posterior_variances, predict
from cnn_gp.regression.solve import solve, targets
from cnn_gp.regression.spectrum import eigenvalues
from helpers.matrices import in_memory, stored
from helpers.small_runs import complete, make_data


def everything(matrices, data, N):
    """The results of every function, as arrays by name."""
    Kxx, Kxvx, Kxtx = matrices
    Y = targets(data.Y[:N], 3)
    solution = solve(Kxx, Y, noise=1e-2)
    n_vali = 23 - N + 9
    means = predict(solution, Kxvx, Kxtx, n_vali, 7)
    curve = learning_curve(solution, Y, [5, N], (Kxvx, data.Yv), (Kxtx, data.Yt))
    left_out = leave_one_out(solution, Y)
    return {
        "assemble": assemble(Kxx, N).matrix(),
        "alpha": solution.alpha,
        "products": solution.products,
        "mean_diagonal": solution.mean_diagonal,
        "log_marginal_likelihoods": solution.log_marginal_likelihoods,
        "extreme_eigenvalues": solution.extreme_eigenvalues,
        "means": np.concatenate([means.train, means.vali, means.test]),
        "vali_variances": posterior_variances(ValidationKernel(Kxx, Kxvx, N), solution, n_vali),
        "test_variances": posterior_variances(Kxtx, solution, 7),
        "learning_curve": [dataclasses.astuple(point) for point in curve],
        "left_out": left_out.means,
        "left_out_variances": left_out.variances,
        "eigenvalues": eigenvalues(Kxx, N),
    }


@pytest.mark.parametrize("N", [23, 13, 10])
@pytest.mark.parametrize("float_type", ["float32", "float64"])
def test_arrays_give_what_a_run_gives(tmp_path, N, float_type):
    data = make_data()
    run = complete(tmp_path, data, n_max=5, float_type=float_type)
    expected = everything(stored(run), data, N)
    for n_max in (5, 4, 100):
        found = everything(in_memory(run, n_max), data, N)
        for name, values in expected.items():
            if n_max == 5:
                np.testing.assert_array_equal(found[name], values, err_msg=name)
            np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-11, err_msg=name)


def test_the_matrices_themselves(tmp_path):
    run = complete(tmp_path, make_data(), n_max=5)
    K = in_memory(run, 5)[0].K
    for gram in (stored(run)[0], in_memory(run, 5)[0]):
        assert (gram.N, gram.n_max) == (23, 5)
        np.testing.assert_array_equal(gram.diagonal(), np.diag(K))
        rows = list(gram.rows())
        assert [start for start, _ in rows] == [0, 5, 10, 15, 20]
        for start, stop, expected in [(5, 15, [5, 10]), (0, 1, [0]), (20, None, [20]), (10, 10, [])]:
            assert [first for first, _ in gram.rows(start, stop)] == expected
        for start, entries in rows:
            np.testing.assert_array_equal(entries, K[start : start + 5, start:])
        for start, stop, left, right in [(0, 7, 0, 7), (3, 12, 12, 23), (20, 23, 20, 23), (0, 4, 4, 5)]:
            for copy in (gram, pickle.loads(pickle.dumps(gram))):
                np.testing.assert_array_equal(copy.block(start, stop, left, right), K[start:stop, left:right])
        assert check_memory(gram, 13) > 0 and has_memory(gram, 13)
    for kernel, other in zip(stored(run)[1:], in_memory(run, 5)[1:], strict=True):
        np.testing.assert_array_equal(kernel.diagonal(), other.diagonal())
        for (start, entries), (expected_start, expected) in zip(kernel.rows(), other.rows(), strict=True):
            assert start == expected_start
            np.testing.assert_array_equal(entries, expected)


def test_a_pickled_run_is_found_from_another_folder(tmp_path, monkeypatch):
    run = complete(tmp_path / "here", make_data())
    monkeypatch.chdir(tmp_path)
    there = pickle.dumps(stored(type(run)("here", run.name))[0])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(pickle.loads(there).diagonal(), stored(run)[0].diagonal())


@pytest.mark.parametrize(("n_rows", "rows_read"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (10, 3), (20, 3)])
def test_no_more_rows_of_tiles_are_read_than_are_needed(n_rows, rows_read):
    read = []

    class Counting(ArrayGram):
        def rows(self):
            for start, entries in super().rows():
                read.append(start)
                yield start, entries

    K = np.arange(100.0).reshape(10, 10)
    found = [entries for _, entries in leading_rows(Counting(K, 4), n_rows)]
    assert len(read) == rows_read and sum(map(len, found)) == min(n_rows, 10)


@pytest.mark.parametrize("N", [23, 12, 5, 1])
def test_only_the_upper_triangle_is_read(tmp_path, N):
    K = in_memory(complete(tmp_path, make_data()), 5)[0].K
    # Within the tiles on the diagonal both triangles are there.
    tiles = np.arange(23) // 5
    upper = np.where(tiles[:, None] <= tiles, K, np.nan)
    alpha = np.random.default_rng(0).normal(size=(N, 3))
    np.testing.assert_allclose(gram_times(ArrayGram(upper, 5), alpha), K[:, :N] @ alpha, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(assemble(ArrayGram(upper, 5), N).matrix(), K[:N, :N])


def test_arrays_of_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"K has shape \(2, 3\); expected a square matrix"):
        ArrayGram(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"K has shape \(2, 3\) and prior_variances \(3,\); expected \[M, N\] and"):
        ArrayKernel(np.zeros((2, 3)), np.zeros(3))
