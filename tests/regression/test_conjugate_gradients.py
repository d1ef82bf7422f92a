"""Conjugate gradients: the solution, stops on the way, stagnation."""

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.regression import conjugate_gradients as cg
from cnn_gp.regression import kept as kept_module
from cnn_gp.regression.cholesky import NotPositiveDefinite
from helpers.iterative import NOISE, Memory, N, preconditioner, times


@pytest.mark.parametrize("rank", [0, 40])
def test_the_solution_and_fewer_iterations_with_a_preconditioner(run, K, Y, rank):
    found = cg.conjugate_gradients(times(run), preconditioner(run, rank), Y, 1e-9)
    X = np.linalg.solve(K + 2 * NOISE * np.eye(N), Y)
    np.testing.assert_allclose(found.X, X, atol=1e-6 * abs(X).max())
    R = Y - (K + 2 * NOISE * np.eye(N)) @ found.X
    np.testing.assert_allclose(found.relative_residual, np.linalg.norm(R) / np.linalg.norm(Y), rtol=0.1, atol=1e-13)
    assert not found.is_stagnant and found.relative_residual <= 1e-9
    if rank:
        assert 2 * found.iterations < cg.conjugate_gradients(times(run), preconditioner(run, 0), Y, 1e-9).iterations


def test_columns_that_are_zero_or_equal_do_no_harm(run, K, Y):
    B = np.column_stack([Y[:, 0], Y[:, 0], np.zeros(N), Y[:, 1]])
    found = cg.conjugate_gradients(times(run), preconditioner(run), B, 1e-9)
    X = np.linalg.solve(K + 2 * NOISE * np.eye(N), B)
    np.testing.assert_allclose(found.X, X, atol=1e-6 * abs(X).max())
    nothing = cg.conjugate_gradients(times(run), preconditioner(run), np.zeros((N, 2)), 1e-9)
    assert (nothing.X == 0).all() and nothing.iterations == 0


def test_a_matrix_that_is_not_positive_definite(run, Y):
    with pytest.raises(NotPositiveDefinite):
        cg.conjugate_gradients(times(run, added=-1.0), preconditioner(run, 0, added=1.0), Y, 1e-9)


@pytest.mark.parametrize("after", [1, 7])
def test_taken_up_after_a_stop_to_the_same_bits(run, Y, after, monkeypatch):
    M = preconditioner(run, 10)
    whole = cg.conjugate_gradients(times(run), M, Y, 1e-9)
    kept, real, count = Memory(), cg._step, [0]

    def stop(*arguments):
        count[0] += 1
        if count[0] > after:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(cg, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        cg.conjugate_gradients(times(run), M, Y, 1e-9, kept)
    assert kept.there["iterations"] == after < whole.iterations
    monkeypatch.setattr(cg, "_step", real)
    found = cg.conjugate_gradients(times(run), M, Y, 1e-9, kept)
    np.testing.assert_array_equal(found.X, whole.X)
    assert found.iterations == whole.iterations
    assert found.seconds_before > 0 == whole.seconds_before
    # The end is kept too: once more costs the product for the residual alone.
    monkeypatch.setattr(cg, "_step", lambda *arguments: pytest.fail("a step"))
    np.testing.assert_array_equal(cg.conjugate_gradients(times(run), M, Y, 1e-9, kept).X, whole.X)
    # Other right sides begin at this solution.
    monkeypatch.setattr(cg, "_step", real)
    other = cg.conjugate_gradients(times(run), M, Y[:, ::-1].copy(), 1e-9, kept)
    np.testing.assert_allclose(other.X, whole.X[:, ::-1], atol=1e-7 * abs(whole.X).max())


def test_the_state_is_kept_on_the_way_and_goes_on_with_another_preconditioner(run, K, Y, monkeypatch):
    monkeypatch.setattr(kept_module, "SECONDS_BETWEEN_STATES", 0.0)
    kept = Memory()
    whole = cg.conjugate_gradients(times(run), preconditioner(run, 10), Y, 1e-9, kept)
    # The last one at the end, too.
    n = whole.iterations
    assert [int(state["iterations"]) for state in kept.saved] == [*range(1, n + 1), n]
    # The solution so far is the start, also where it is gone on with another preconditioner.
    other = preconditioner(run, 20)
    fresh = cg.conjugate_gradients(times(run), other, Y, 1e-9)
    state = kept.saved[-3]
    found = cg.conjugate_gradients(times(run), other, Y, 1e-9, Memory(state))
    assert found.relative_residual <= 1e-9
    assert 0 < found.iterations - int(state["iterations"]) < fresh.iterations


def test_stagnation_is_said_with_the_true_residual(run, K, Y, monkeypatch):
    monkeypatch.setattr(cg, "PATIENCE", 20)
    found = cg.conjugate_gradients(times(run), preconditioner(run), Y, 1e-19)
    R = Y - (K + 2 * NOISE * np.eye(N)) @ found.X
    assert found.is_stagnant and found.relative_residual > 1e-19
    np.testing.assert_allclose(found.relative_residual, np.linalg.norm(R) / np.linalg.norm(Y), rtol=0.5)


def test_a_state_that_cannot_be_written_stops_no_solve(run, Y, monkeypatch):
    class Full(Memory):
        def save(self, arrays):
            super().save(arrays)
            raise UserError("The disk is full.")

    monkeypatch.setattr(kept_module, "SECONDS_BETWEEN_STATES", 0.0)
    kept, M = Full(), preconditioner(run)
    found = cg.conjugate_gradients(times(run), M, Y, 1e-9, kept)
    assert len(kept.saved) > 1 and found.relative_residual <= 1e-9
