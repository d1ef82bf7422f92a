"""Conjugate gradients whose tiles are in the memory of a Dask cluster's workers, one of which is killed."""

import gc
import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest

from cnn_gp.cluster import as_completed
from cnn_gp.errors import UserError
from cnn_gp.regression.iterative import Iterative, IterativeFactor
from cnn_gp.regression.lower_triangle import LowerTriangle
from cnn_gp.regression.memory_needs import has_memory
from cnn_gp.regression.predict import predict
from cnn_gp.regression.solve import solve, targets
from cnn_gp.regression.tile_products import TileProducts
from cnn_gp.regression.tree_sum import halves, tree_sum
from helpers.dask_cluster import local_client
from helpers.matrices import stored
from helpers.small_runs import complete, make_data
from helpers.waiting import wait_until

pytest.importorskip("distributed", reason="Dask isn't installed (the [cluster] extra)")

from cnn_gp.regression import dask_products as module
from cnn_gp.regression.dask_products import ClusterProducts, _product

N, N_MAX, NOISE = 160, 16, 1e-3


@pytest.fixture(scope="module")
def client():
    with local_client(3) as client:
        yield client


@pytest.fixture(autouse=True)
def all_workers(client):
    # A nanny starts a killed worker again.
    wait_until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 3)


@pytest.fixture(autouse=True)
def few_steps_to_the_log_determinant(monkeypatch):
    monkeypatch.setattr("cnn_gp.regression.log_determinant._STEPS", 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return complete(tmp_path_factory.mktemp("cluster"), make_data(N, 30, 30), n_max=N_MAX, float_type="float32")


@pytest.fixture(scope="module")
def Y(run):
    return targets(run.labels()["Y"], 3)


@pytest.fixture(scope="module")
def on_cluster(run, Y, client):
    """The solution on an undisturbed cluster."""
    return solve(stored(run)[0], Y, noise=NOISE, iterative=Iterative(client=client))


@pytest.mark.parametrize("limit", [0, 3e4, 1e9])
def test_products_and_columns_equal_those_of_one_machine(run, client, rng, limit):
    gram = stored(run)[0]
    here, there = TileProducts(gram, N, 1e9), ClusterProducts(client, gram, N, limit)
    assert there.share_in_memory == {0: 0, 1e9: 1}.get(limit, pytest.approx(0.5, abs=0.3))
    for n in (N, 90, 5):
        for m in (1, 3, 40):
            B = rng.normal(size=(n, m))
            expected = here.times(B)
            np.testing.assert_allclose(there.times(B), expected, rtol=1e-12, atol=1e-11)
            if m < 32:
                np.testing.assert_array_equal(there.times(B), expected)
        indices = np.array([2, 80, 77, 31, 32])[: 1 if n == 5 else None]
        np.testing.assert_array_equal(there.columns(indices, n), here.columns(indices, n))


def test_rows_that_are_not_solved_for_are_multiplied_too(run, client, rng):
    gram = stored(run)[0]
    for n in (N, 111):
        B = rng.normal(size=(n, 3))
        expected = TileProducts(gram, n, 1e9).stored_times(B)
        assert len(expected) == N
        np.testing.assert_allclose(ClusterProducts(client, gram, n, 1e9).stored_times(B), expected, atol=1e-11)


@pytest.mark.parametrize(("n_rows", "most"), [(19, 12), (19, 400), (1, 5), (100, 7), (2000, 512)])
def test_the_ranges_hold_every_row_once_and_the_workers_have_about_as_much(n_rows, most):
    sizes = np.arange(n_rows, 0, -1)
    ranges = module._ranges(sizes, most)
    assert ranges[0][0] == 0 and ranges[-1][1] == n_rows and len(ranges) == min(most, n_rows)
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(ranges))
    of_ranges = np.array([sizes[slice(*bounds)].sum() for bounds in ranges])
    places = np.array(module._shared_out(of_ranges, {"a": 1, "b": 2, "c": 1}))
    for address, share in (("a", 0.25), ("b", 0.5), ("c", 0.25)):
        assert abs(of_ranges[places == address].sum() / sizes.sum() - share) <= 2 * of_ranges.max() / sizes.sum()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 13])
def test_branches_are_summed_to_the_same_bits_wherever_they_are(n, rng):
    leaves = [rng.normal(size=(4 + n - i, 2)) for i in range(n)]

    def parts(first, stop):
        return tree_sum(((i, leaf.copy()) for i, leaf in enumerate(leaves[first:stop])), stop - first)

    def by_branches(first, stop):
        if stop - first <= 2:
            return parts(first, stop)
        one, other = (by_branches(*half) for half in halves(first, stop))
        return module._sum(one, other)

    np.testing.assert_array_equal(by_branches(0, n), parts(0, n))
    expected = sum(np.concatenate([np.zeros((i, 2)), leaf]) for i, leaf in enumerate(leaves))
    np.testing.assert_allclose(parts(0, n), expected)


@pytest.mark.parametrize("n", [N, 111])
def test_the_solution_equals_that_of_one_machine(run, Y, client, n):
    matrices, n_vali = stored(run), 30 + N - n
    here, there = (
        solve(matrices[0], Y[:n], noise=NOISE, iterative=how) for how in (Iterative(), Iterative(client=client))
    )
    assert isinstance(there.factor, IterativeFactor) and there.factor.rank == here.factor.rank
    assert there.factor.iterations == here.factor.iterations
    np.testing.assert_array_equal(there.alpha, here.alpha)
    for one, other in zip(*(vars(predict(s, *matrices[1:], n_vali, 30)).values() for s in (here, there)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    assert there.log_determinant == here.log_determinant
    assert there.relative_residual <= 1e-8


@pytest.fixture
def no_garbage_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_nothing_stays_in_the_cluster(run, Y, client, no_garbage_collection):
    solution = solve(stored(run)[0], Y, noise=NOISE, iterative=Iterative(client=client))
    # The rows alone: no vectors of the iterations.
    rows = {row.key for row in solution.factor._prepared.products._rows}
    wait_until(lambda: set(client.who_has()) == rows)
    del solution
    wait_until(lambda: not client.who_has())


def slow_product(rows, tiles, B, M):
    """One of them is waited for."""
    rows = list(rows)
    if rows[0][0] == 0:
        time.sleep(1.5)
    return _product(rows, tiles, B, M)


def test_nothing_of_products_that_were_waited_for_or_begun_again_stays(
    run, client, rng, monkeypatch, no_garbage_collection
):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    products, B = ClusterProducts(client, stored(run)[0], N, 1e9), rng.normal(size=(N, 3))
    rows = {row.key for row in products._rows}
    monkeypatch.setattr(module, "_product", slow_product)
    products.times(B)
    wait_until(lambda: set(client.who_has()) == rows)
    monkeypatch.setattr(module, "_product", _product)

    def lost(client, futures):
        """The sum of all is there, and can't be fetched the first time."""
        monkeypatch.setattr(module, "as_completed", as_completed)
        wait_until(futures[0].done)
        yield client.submit(failing).result()

    monkeypatch.setattr(module, "as_completed", lost)
    products.times(B)
    assert module.as_completed is as_completed
    wait_until(lambda: set(client.who_has()) == rows)


def failing():
    raise OSError("a connection is lost")


def test_a_worker_that_is_killed_in_the_middle_of_a_product(run, Y, client, on_cluster, monkeypatch):
    processes = client.run(os.getpid)
    submit, n_products = ClusterProducts._submit, [0]
    victims: list[str] = []

    def kill(victim):
        # It can't end what it is given: it was stopped before.
        wait_until(lambda: client.processing().get(victim))
        os.kill(processes[victim], signal.SIGKILL)

    def submitted(self, function, *arguments, place=None):
        n_products[0] += function is module._product
        if function is module._product and n_products[0] > 60 and not victims:
            victims.append(place)
            assert any(place in holders for holders in client.who_has(self._rows).values())
            os.kill(processes[place], signal.SIGSTOP)
            threading.Thread(target=kill, args=(place,), daemon=True).start()
        return submit(self, function, *arguments, place=place)

    monkeypatch.setattr(ClusterProducts, "_submit", submitted)
    found = solve(stored(run)[0], Y, noise=NOISE, iterative=Iterative(client=client))
    assert victims
    np.testing.assert_array_equal(found.alpha, on_cluster.alpha)
    # Others have read its rows.
    holders = client.who_has(found.factor._prepared.products._rows)
    assert len(holders) == len(found.factor._prepared.products._rows)
    assert all(there and victims[0] not in there for there in holders.values())


@pytest.mark.parametrize("lost", ["while they are sent", "when they are there"])
def test_vectors_that_are_lost_are_sent_again(run, client, rng, monkeypatch, lost):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    products = ClusterProducts(client, stored(run)[0], N, 1e9)
    B, sent, scatter = rng.normal(size=(N, 3)), [0], client.scatter
    expected = products.times(B)

    def scattered(*arguments, **options):
        sent[0] += 1
        if sent[0] == 1 and lost == "while they are sent":
            raise OSError("the connection to a worker is lost")
        vectors = scatter(*arguments, **options)
        if sent[0] == 1:
            client.cancel(vectors, force=True)
        return vectors

    monkeypatch.setattr(client, "scatter", scattered)
    np.testing.assert_array_equal(products.times(B), expected)
    assert sent[0] == 2


def test_a_cluster_that_loses_them_every_time_is_not_tried_for_ever(run, client, rng, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    products = ClusterProducts(client, stored(run)[0], N, 1e9)

    def scattered(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(client, "scatter", scattered)
    with pytest.raises(OSError, match="no route"):
        products.times(rng.normal(size=(N, 3)))


def test_a_damaged_part_is_named(tmp_path, client, Y):
    run = complete(tmp_path, make_data(N, 30, 30), n_max=N_MAX, float_type="float32")
    path = sorted(run.folder.glob("Kxx_*.h5"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        solve(stored(run)[0], Y, noise=NOISE, iterative=Iterative(client=client))


def test_the_memory_of_the_cluster_decides_of_a_factor_and_of_the_tiles(run, Y, client, monkeypatch):
    gram = stored(run)[0]
    assert has_memory(gram, N, 0, client) and not has_memory(gram, N, 0)
    monkeypatch.setattr(LowerTriangle, "n_bytes", staticmethod(lambda N: int(1e9) * N**2))
    assert not has_memory(gram, N, client=client)
    monkeypatch.setattr("cnn_gp.regression.iterative.memory_of_cluster", lambda client: 6e4)
    limited = solve(gram, Y, noise=NOISE, iterative=Iterative(client=client))
    assert 0.1 < limited.factor._prepared.products.share_in_memory < 0.9 and limited.relative_residual <= 1e-8
