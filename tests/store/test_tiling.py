"""Every kernel entry belongs to exactly one tile, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_gp.errors import UserError
from cnn_gp.store.tiling import MATRICES, MAX_PARTS, Tiling

sizes = st.integers(min_value=1, max_value=60)


@settings(deadline=None, max_examples=200)
@given(N=sizes, N_vali=sizes, N_test=sizes, n_max=st.integers(min_value=1, max_value=70))
def test_tiles_cover_each_entry_once(N, N_vali, N_test, n_max):
    tiling = Tiling(N, N_vali, N_test, n_max)
    counts = {name: np.zeros((height, N), int) for name, height in tiling.heights.items()}
    for part in tiling.parts():
        for row in part.rows:
            assert row.shape[0] <= n_max
            counts[row.matrix][row.start : row.stop, row.first_column : row.first_column + row.n_columns] += 1
    assert (counts["Kxvx"] == 1).all() and (counts["Kxtx"] == 1).all()
    upper = counts["Kxx"][np.triu_indices(N)]
    assert (upper == 1).all()
    below_the_tiles = [(i, j) for i in range(N) for j in range(N) if j // n_max < i // n_max]
    assert all(counts["Kxx"][i, j] == 0 for i, j in below_the_tiles)


@settings(deadline=None, max_examples=200)
@given(N=sizes, N_vali=sizes, N_test=sizes, n_max=st.integers(min_value=1, max_value=70))
def test_entries_counts_what_is_computed(N, N_vali, N_test, n_max):
    assert Tiling(N, N_vali, N_test, n_max).n_entries == N * (N + 1) // 2 + (N_vali + N_test) * N


@pytest.mark.parametrize("n_max", [7, 50, 200, 1000])
def test_the_papers_job_has_fewer_than_500_parts_with_distinct_names(n_max):
    tiling = Tiling(50_000, 10_000, 10_000, n_max)
    names = [part.name for part in tiling.parts()]
    assert len(set(names)) == len(names) < MAX_PARTS
    assert {name.split("_")[0] for name in names} == set(MATRICES)
    assert tiling.n_entries == 2_250_025_000


def test_the_papers_job_takes_nine_gigabytes_in_float32():
    assert Tiling(50_000, 10_000, 10_000, 200).n_bytes(4) == pytest.approx(9.02e9, rel=1e-3)
    assert Tiling(50_000, 10_000, 10_000, 200).n_tiles == 56_375


@pytest.mark.parametrize("name", ["N_train", "N_vali", "N_test", "n_max"])
def test_sizes_below_one_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"{name} is 0; expected a whole number of at least 1"):
        Tiling(**{"N_train": 5, "N_vali": 5, "N_test": 5, "n_max": 5, name: 0})
