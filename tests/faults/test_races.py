"""
Programs that begin different runs in one place at once: one run is there in the end, and no other's numbers.

``CNN_GP_TRIES`` is the number of tries, 20 by default.
"""

import functools
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.forked import run_forked
from helpers.matrices import bytes_of

TRIES = int(os.environ.get("CNN_GP_TRIES", "20"))
STAGE_1 = ["--dataset=digits", "--N_train=60", "--N_vali=20", "--N_test=30", "--n_max=20", "--model=convnet_gp"]
KERNELS = ["--var_bias=1.0", "--var_weight=2.0", "--var_weight=2.5"]


def save(workdir, kernel, delay=0.0):
    before = functools.partial(time.sleep, delay)
    return run_forked("save_kernels", *STAGE_1, kernel, "--run_name=x", f"--path={workdir}", before=before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What each kernel's run holds where nobody else is there, by its flag."""
    found = {}
    for kernel in KERNELS:
        workdir = tmp_path_factory.mktemp("alone")
        assert save(workdir, kernel).status == 0
        found[kernel] = bytes_of(workdir / "x")
    return found


@pytest.mark.long
def test_different_kernels_begun_at_once_in_one_place_are_never_mixed(alone, tmp_path):
    rng = random.Random(0)
    with ThreadPoolExecutor(len(KERNELS)) as threads:
        for number in range(TRIES):
            workdir = tmp_path / str(number)
            kernels = rng.sample(KERNELS, rng.choice([2, 3]))
            delays = [rng.uniform(0, 0.06) for _ in kernels]
            ended = dict(zip(kernels, threads.map(functools.partial(save, workdir), kernels, delays), strict=True))
            winners = [kernel for kernel, end in ended.items() if end.status == 0]
            assert len(winners) == 1, ended
            assert bytes_of(workdir / "x") == alone[winners[0]], number
            for kernel in set(kernels) - set(winners):
                assert ended[kernel].is_one_line and "holds another run" in ended[kernel].stderr, ended[kernel]
