"""Conjugate gradients from stored tiles, against the Cholesky factorisation."""

import functools

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve

from cnn_gp.errors import UserError
from cnn_gp.regression import conjugate_gradients as cg
from cnn_gp.regression import iterative as module
from cnn_gp.regression import kept as kept_module
from cnn_gp.regression.cholesky import NotPositiveDefinite
from cnn_gp.regression.gram_matrix import ArrayGram, leading_rows
from cnn_gp.regression.iterative import Iterative, IterativeFactor
from cnn_gp.regression.leave_one_out import leave_one_out
from cnn_gp.regression.log_determinant import log_determinant
from cnn_gp.regression.pivoted_cholesky import LowRank, Preconditioner, randomly_pivoted_cholesky
from cnn_gp.regression.predict import posterior_variances, predict
from cnn_gp.regression.solve import solve, targets
from cnn_gp.regression.tile_products import TileProducts
from cnn_gp.store import run_folder, sealed
from helpers.matrices import stored
from helpers.small_runs import complete, make_data

N, N_MAX, NOISE = 300, 32, 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return complete(tmp_path_factory.mktemp("iterative"), make_data(N, 30, 30), n_max=N_MAX, float_type="float32")


@pytest.fixture(scope="module")
def K(run):
    K = np.zeros((N, N))
    for start, entries in leading_rows(stored(run)[0], N):
        K[start : start + len(entries), start:] = entries
    return np.triu(K) + np.triu(K, 1).T


@pytest.fixture(scope="module")
def Y(run):
    return targets(run.labels()["Y"], 3)


def products(run, limit=1e9):
    return TileProducts(stored(run)[0], N, limit)


def preconditioner(run, rank=40, added=2 * NOISE, **options):
    F = randomly_pivoted_cholesky(products(run), N, rank, **options)
    return Preconditioner(LowRank(F, float(products(run).diagonal().sum())), added)


def times(run, limit=1e9, added=2 * NOISE):
    of_tiles = products(run, limit)
    return lambda B: of_tiles.times(B) + added * B


class Memory:
    """Keeps the state in memory."""

    def __init__(self, there=None):
        self.there, self.saved = there, []

    def load(self):
        return None if self.there is None else dict(self.there)

    def save(self, arrays):
        self.there = arrays
        self.saved.append(arrays)

    def remove(self):
        self.there = None


# Products ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1e5, 1e9])
def test_products_and_columns_equal_the_whole_matrix_s(run, K, rng, limit):
    of_tiles = products(run, limit)
    for n in (N, 190):
        # The first time the rows are read, later some of them are in memory.
        for m in (1, 3, 40, 3):
            B = rng.normal(size=(n, m))
            np.testing.assert_allclose(of_tiles.times(B), K[:n, :n] @ B, rtol=1e-12, atol=1e-11)
        indices = np.array([5, 180, 77, 31, 32])
        np.testing.assert_array_equal(of_tiles.columns(indices, n), K[:n, indices])


@pytest.mark.parametrize("limit", [0, 1e5])
def test_the_limit_changes_no_bit_and_no_more_is_kept(run, rng, limit):
    B = rng.normal(size=(N, 3))
    every, few = products(run), products(run, limit)
    for _ in range(2):
        np.testing.assert_array_equal(few.times(B), every.times(B))
    assert sum(rows.nbytes for rows in few._kept.values()) <= limit
    assert few.share_in_memory < 0.5 and every.share_in_memory == 1


def test_what_is_in_memory_is_not_read_again(run, rng, monkeypatch):
    of_tiles = products(run)
    B = rng.normal(size=(N, 3))
    first = of_tiles.times(B)
    monkeypatch.setattr(run_folder, "read_sealed", lambda *arguments, **options: pytest.fail("read"))
    np.testing.assert_array_equal(of_tiles.times(B), first)


def test_tiles_are_verified_by_the_first_product_and_where_their_file_has_changed(tmp_path, rng, monkeypatch):
    run = complete(tmp_path, make_data(40, 10, 10), n_max=8)
    of_tiles = TileProducts(stored(run)[0], 40, 0)
    B = rng.normal(size=(40, 3))
    verified = []
    digest = sealed._digest
    monkeypatch.setattr(sealed, "_digest", lambda content: verified.append(content[1:4]) or digest(content))
    first = of_tiles.times(B)
    n_files = len(list(run.folder.glob("Kxx_*.h5")))

    def contents():
        # Of the files; their seals have digests of their own.
        return verified.count(b"HDF")

    assert contents() == n_files
    np.testing.assert_array_equal(of_tiles.times(B), first)
    assert contents() == n_files
    of_tiles.stored_times(B)
    assert contents() == 2 * n_files
    path = run.folder / "Kxx_0001.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"Kxx_0001\.h5 can't be read"):
        of_tiles.times(B)


def test_an_error_in_the_first_product_leaves_none_of_its_rows_behind(run, K, rng, monkeypatch):
    of_tiles = products(run)
    B = rng.normal(size=(N, 3))

    def interrupted(gram):
        for start, entries in real(gram):
            if start == 3 * N_MAX:
                raise KeyboardInterrupt
            yield start, entries

    real = type(of_tiles.gram).rows
    with monkeypatch.context() as patch:
        patch.setattr(type(of_tiles.gram), "rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            of_tiles.times(B)
    np.testing.assert_allclose(of_tiles.times(B), K @ B, rtol=1e-12, atol=1e-11)


# Preconditioner ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greedy", [False, True])
def test_the_pivoted_factor_is_near_the_matrix_from_below(run, K, greedy):
    F = randomly_pivoted_cholesky(products(run), N, 40, greedy=greedy)
    left = np.linalg.eigvalsh(K - F @ F.T)
    # The best of this rank leaves the smallest eigenvalues.
    assert left.sum() < 5 * np.linalg.eigvalsh(K)[:-40].sum() + 1e-4 and left[0] > -1e-5
    np.testing.assert_array_equal(F, randomly_pivoted_cholesky(products(run), N, 40, greedy=greedy))


def test_the_rank_ends_where_nothing_is_left():
    V = np.random.default_rng(0).normal(size=(60, 5))
    of_tiles = TileProducts(ArrayGram(V @ V.T, 16), 60, 1e9)
    assert randomly_pivoted_cholesky(of_tiles, 60, 30).shape[1] == 5


@pytest.mark.parametrize("greedy", [False, True])
def test_a_pass_that_finds_few_pivots_is_not_the_last(greedy):
    # After the first pivot a thousandth is left of all diagonals: the other 59 proposals of its pass are rejected.
    of_tiles = TileProducts(ArrayGram(1 + 1e-3 * np.eye(1200), 200), 1200, 1e9)
    assert randomly_pivoted_cholesky(of_tiles, 1200, 600, greedy=greedy).shape[1] > 500


def test_the_inverse_root_and_the_determinant(run, rng):
    F = randomly_pivoted_cholesky(products(run), N, 40)
    trace = float(products(run).diagonal().sum())
    M = Preconditioner(LowRank(F.copy(), trace), NOISE)
    whole = F @ F.T + M.mu * np.eye(N)
    B = rng.normal(size=(N, 2))
    twice = M.inverse_root_times(M.inverse_root_times(B))
    np.testing.assert_allclose(whole @ twice, B, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(M.log_determinant, np.linalg.slogdet(whole)[1], rtol=1e-9)
    np.testing.assert_allclose(M.largest, np.linalg.eigvalsh(whole)[-1], rtol=1e-9)


# Conjugate gradients -------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("condition", [1e2, 1e7, 1e14])
def test_the_preconditioner_s_factor_has_orthonormal_columns(rng, condition):
    wide = rng.normal(size=(400, 50)) * np.logspace(0, -np.log10(condition), 50)
    F = np.asfortranarray(wide @ rng.normal(size=(50, 50)))
    low_rank = LowRank(F.copy(order="F"), 1e9)
    np.testing.assert_allclose(low_rank.Q.T @ low_rank.Q, np.eye(50), atol=1e-13)
    vectors = low_rank.Q @ low_rank.V
    found = (vectors * low_rank.eigenvalues) @ vectors.T
    np.testing.assert_allclose(found, F @ F.T, atol=1e-12 * abs(F @ F.T).max())


# The whole solve -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [N, 211])
def test_everything_equals_the_factorisation_s(run, Y, n):
    Kxx, Kxvx, Kxtx = stored(run)
    exact = solve(Kxx, Y[:n], noise=NOISE)
    found = solve(Kxx, Y[:n], noise=NOISE, iterative=Iterative())
    n_vali = 30 + N - n
    for one, other in zip(
        *(vars(predict(solution, Kxvx, Kxtx, n_vali, 30)).values() for solution in (exact, found)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
        np.testing.assert_array_equal(one.argmax(axis=1), other.argmax(axis=1))
    assert found.relative_residual <= module.TOLERANCE
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    close(posterior_variances(Kxtx, found, 30), posterior_variances(Kxtx, exact, 30))
    close(leave_one_out(found, Y[:n]).means, leave_one_out(exact, Y[:n]).means)
    close(found.factor.solve(Y[:150], 150), exact.factor.solve(Y[:150], 150), atol=1e-5 * abs(exact.alpha).max())
    for size in (None, 150):
        error = abs(found.factor.log_determinant(size) - exact.factor.log_determinant(size))
        assert error < 3 * found.factor.log_determinant_error(size) + 1e-6
    assert found.log_marginal_likelihood_error == 1.5 * found.factor.log_determinant_error()
    assert exact.log_marginal_likelihood_error is None
    assert found.extreme_eigenvalues[1] == pytest.approx(exact.extreme_eigenvalues[1], rel=0.02)


@pytest.mark.parametrize("rank", [0, 5, 40])
def test_the_log_determinant_is_within_three_standard_errors(run, K, rank):
    A = K + 2 * NOISE * np.eye(N)
    found, error = log_determinant(lambda B: A @ B, preconditioner(run, rank))
    assert abs(found - np.linalg.slogdet(A)[1]) < 3 * error + 1e-9 * N
    assert error < 30


def test_the_log_determinant_s_state_goes_on_to_the_same_bits(run, monkeypatch):
    M, of_run, kept, count = preconditioner(run, 10), times(run), Memory(), [0]
    whole = log_determinant(of_run, M)

    def stopped(B):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return of_run(B)

    with pytest.raises(KeyboardInterrupt):
        log_determinant(stopped, M, kept=kept)
    assert len(kept.there["diagonals"]) == 3
    assert log_determinant(stopped, M, kept=kept) == whole
    # At its end nothing is left to be computed.
    assert log_determinant(lambda B: pytest.fail("a product"), M, kept=kept) == whole
    # Of another preconditioner's state nothing is taken.
    other = preconditioner(run, 20)
    assert log_determinant(of_run, other, kept=kept) == log_determinant(of_run, other)


@pytest.mark.long
@pytest.mark.parametrize("noise", [1e-4, 1e-2])
def test_the_log_determinant_of_5000_images_is_within_three_standard_errors(noise):
    X = make_data(5000).X.astype(np.float64)
    squares = np.einsum("ij,ij->i", X, X)
    K = (2 * np.exp(-0.5 * np.maximum(squares[:, None] + squares - 2 * X @ X.T, 0))).astype(np.float32)
    np.fill_diagonal(K, 2)
    of_tiles = TileProducts(ArrayGram(K, 500), 5000, 1e9)
    # A small rank, which leaves much to be estimated.
    M = Preconditioner(LowRank(randomly_pivoted_cholesky(of_tiles, 5000, 20), 10_000.0), 2 * noise)
    found, error = log_determinant(lambda B: of_tiles.times(B) + 2 * noise * B, M)
    A = np.triu(K).astype(np.float64)
    A += np.triu(A, 1).T
    A[np.diag_indices(5000)] += 2 * noise
    exact = 2 * np.log(np.diagonal(np.linalg.cholesky(A))).sum()
    assert abs(found - exact) < 3 * error
    assert 0 < error < 0.01 * abs(exact)


def test_a_stagnant_solve_says_so_in_one_line(run, Y, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", 1e-19)
    monkeypatch.setattr(cg, "PATIENCE", 10)
    said: list[str] = []
    solve(stored(run)[0], Y, noise=NOISE, say=said.append, iterative=Iterative())
    (line,) = [line for line in said if "no longer falls" in line]
    assert "relative residual of" in line and "--noise" in line and "--solver=cholesky" in line


def test_several_noises_share_the_tiles_and_the_pivots(run, Y, monkeypatch):
    passes, real = [0], TileProducts.columns

    def columns(*arguments):
        passes[0] += 1
        return real(*arguments)

    monkeypatch.setattr(TileProducts, "columns", columns)
    gram, iterative = stored(run)[0], Iterative()
    alone = solve(stored(run)[0], Y, noise=1e-2, iterative=Iterative())
    once, passes[0] = passes[0], 0
    said: list[str] = []
    solutions = [solve(gram, Y, noise=noise, say=said.append, iterative=iterative) for noise in (NOISE, 1e-2)]
    assert passes[0] == once > 0 and len([line for line in said if "Preconditioner" in line]) == 1
    np.testing.assert_array_equal(solutions[1].alpha, alone.alpha)
    # Another size, and what follows when nothing of the matrix is in use any more, begin anew.
    solve(gram, Y[:200], noise=NOISE, iterative=iterative)
    assert passes[0] > once
    passes[0] = 0
    del solutions
    solve(gram, Y, noise=NOISE, iterative=iterative)
    assert passes[0] == once


def test_jitters_share_the_pivots(run, Y, K, monkeypatch):
    made: list[int] = []
    real = module.randomly_pivoted_cholesky
    monkeypatch.setattr(module, "randomly_pivoted_cholesky", lambda *some: made.append(1) or real(*some))
    found = solve(ArrayGram(K - 5e-4 * np.eye(N), 50), Y, iterative=Iterative())
    assert found.jitter > 0 and made == [1]


def test_memory_that_is_too_little(run, Y):
    with pytest.raises(UserError, match=r"need 0\.00 GB of memory and have 0\.00 GB: give a larger --memory"):
        solve(stored(run)[0], Y, noise=NOISE, iterative=Iterative(memory=1000))


def test_a_limited_memory_gives_the_same_solution(run, Y):
    Kxx = stored(run)[0]
    enough = solve(Kxx, Y, noise=NOISE, iterative=Iterative())
    little = solve(Kxx, Y, noise=NOISE, iterative=Iterative(memory=1_250_000))
    assert little.factor._prepared.products.share_in_memory < 0.5 and little.factor.rank < enough.factor.rank
    np.testing.assert_allclose(little.products, enough.products, atol=1e-6)


def test_many_right_sides_are_solved_for_in_groups_that_memory_allows(run, Y, rng):
    gram = stored(run)[0]
    # Some 800 kB for vectors, of which a right side takes 48 kB, are left after what is needed in any case.
    few = Iterative(memory=5_000_000, many_right_sides=True)
    plan = few.plan(gram, N, 3)
    assert 16 < plan.at_a_time < 60 and plan.room < Iterative(memory=5_000_000).plan(gram, N, 3).room
    assert Iterative(memory=10**9, many_right_sides=True).plan(gram, N, 3).at_a_time == module.AT_A_TIME
    solution = solve(gram, Y, noise=NOISE, iterative=few)
    B = rng.normal(size=(N, 2 * plan.at_a_time + 1))
    exact = solve(gram, Y, noise=NOISE).factor.solve(B.copy())
    np.testing.assert_allclose(solution.factor.solve(B), exact, atol=1e-6 * abs(exact).max())


def test_a_state_that_cannot_be_written_stops_no_solve(run, Y, monkeypatch):
    class Full(Memory):
        def save(self, arrays):
            super().save(arrays)
            raise UserError("The disk is full.")

    monkeypatch.setattr(kept_module, "SECONDS_BETWEEN_STATES", 0.0)
    kept, M = Full(), preconditioner(run)
    found = cg.conjugate_gradients(times(run), M, Y, 1e-9, kept)
    assert len(kept.saved) > 1 and found.relative_residual <= 1e-9


def test_jitter_is_added_where_the_matrix_is_not_positive_definite(Y, K):
    bad = ArrayGram(K - 5e-4 * np.eye(N), 50)
    said: list[str] = []
    found = solve(bad, Y, say=said.append, iterative=Iterative())
    assert found.jitter > 0 and any("isn't positive definite at relative jitter 0 " in line for line in said)
    assert isinstance(found.factor, IterativeFactor) and found.relative_residual <= module.TOLERANCE
    factor = cho_factor(K + (found.added - 5e-4) * np.eye(N))
    np.testing.assert_allclose(found.alpha, cho_solve(factor, Y), atol=1e-5 * abs(found.alpha).max())
