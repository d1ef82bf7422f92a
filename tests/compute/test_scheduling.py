"""Which parts a program does first, the shards of a job array, and jobs that do not fit on the disk."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_gp.compute.scheduler import check_disk, in_order, shares
from cnn_gp.errors import UserError
from cnn_gp.store.tiling import Tiling
from helpers.small_runs import begin, compute, make_data
from helpers.workers import SIZES


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shards_are_of_equal_cost_and_cover_all(n):
    parts = Tiling(5000, 500, 700, 100).parts()
    dealt = shares(parts, n)
    assert sorted(p.name for share in dealt for p in share) == sorted(p.name for p in parts)
    costs = [sum(p.n_entries for p in share) for share in dealt]
    assert max(costs) - min(costs) <= 0.02 * sum(costs) / n
    for i in range(1, n + 1):
        order = in_order(parts, (i, n))
        assert len(order) == len(parts) and order[: len(dealt[i - 1])] == dealt[i - 1]


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.tuples(*[st.integers(min_value=1, max_value=300)] * 3),
    n_max=st.integers(min_value=1, max_value=50),
    n=st.integers(min_value=1, max_value=9),
)
def test_each_part_belongs_to_one_shard(sizes, n_max, n):
    parts = Tiling(*sizes, n_max).parts()
    dealt = [part.name for share in shares(parts, n) for part in share]
    assert sorted(dealt) == sorted(part.name for part in parts)


@pytest.mark.parametrize("sizes", [(10_000, 1000, 1000, 200), (50_000, 10_000, 10_000, 200), (4000, 1000, 1000, 100)])
@pytest.mark.parametrize("k", range(2, 9))
def test_equal_workers_idle_less_than_five_percent(sizes, k):
    """Simulated: each free worker takes the next part in order, whose cost is its entries and a fixed overhead."""
    parts = in_order(Tiling(*sizes).parts())
    assert len(parts) >= 50
    free = [0.0] * k
    for part in parts:
        first = free.index(min(free))
        free[first] += part.n_entries * 1.9e-6 + 0.02
    assert 1 - sum(free) / (k * max(free)) < 0.05


def test_a_job_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    import shutil

    run = begin(tmp_path, make_data(**SIZES))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    with pytest.raises(UserError, match=r"needs 0.000 GB more and its disk has 0.000 GB free: free some space"):
        check_disk(run, run.description().tiling.parts())
    with pytest.raises(UserError, match="free some space"):
        compute(run)
    assert not list(run.folder.glob("K*"))
