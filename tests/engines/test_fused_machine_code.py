"""The fused engine's machine code: vectors, widths, and when it is compiled again."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from cnn_gp.data import datasets
from cnn_gp.engines.fused.engine import FusedEngine, is_compiled
from cnn_gp.engines.fused.loops import covariances, variances
from cnn_gp.engines.fused.lowering import lower
from cnn_gp.engines.fused.microtile import PAIRS, ROWS
from cnn_gp.engines.fused.simd import WIDTH, load, splat, store
from helpers.fused_kernels import KERNELS, images


def test_lanes_are_not_reordered():
    @njit
    def doubled(array):
        for i in range(0, len(array), WIDTH):
            store(array, i, load(array, i) * splat(np.float32(2)))

    array = np.arange(PAIRS, dtype=np.float32)
    doubled(array)
    np.testing.assert_array_equal(array, 2 * np.arange(PAIRS))
    assert ROWS * WIDTH == PAIRS


@pytest.mark.parametrize("name", ["resnet, ntk", "pool, erf, ntk", "pools within, no last one, erf, ntk"])
def test_all_programs_have_one_machine_code(name):
    """A second one, for arrays of another layout, would cost the user another minute of compiling."""
    kernel = KERNELS[name][0]
    engine, X = FusedEngine(lower(kernel)), images(kernel, 21)
    engine.both(X)
    engine.matrix(X, X[:9].copy())
    engine.first_non_finite(*X[:2])
    assert (len(covariances.signatures), len(variances.signatures)) == (1, 1)


@pytest.mark.long
def test_the_other_width_gives_the_same_bits(tmp_path):
    """With AVX-512: vectors of 8 in the machine code of a processor that has AVX2 only. Without: vectors of 16."""
    kernels = [KERNELS[name][0] for name in ("resnet", "erf", "step", "resnet, ntk", "pool, erf, ntk")]
    (tmp_path / "programs").write_bytes(pickle.dumps([lower(kernel) for kernel in kernels]))
    X = [images(kernel, 70) for kernel in kernels]
    np.savez(tmp_path / "images.npz", *X)
    script = (
        "import pickle, sys; import numpy as np; from cnn_gp.engines.fused.engine import FusedEngine, WIDTH;"
        "programs = pickle.load(open(sys.argv[1] + '/programs', 'rb'));"
        "images = np.load(sys.argv[1] + '/images.npz').values();"
        "np.savez(sys.argv[1] + '/K.npz', *(FusedEngine(p).matrix(X) for p, X in zip(programs, images)));"
        "print(WIDTH)"
    )
    other = {"CNN_GP_SIMD_WIDTH": str(24 - WIDTH)}
    if WIDTH == 16:
        other |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | other,
        check=True,
        text=True,
        capture_output=True,
    )
    assert run.stdout == f"{24 - WIDTH}\n"
    for kernel, x, K in zip(kernels, X, np.load(tmp_path / "K.npz").values(), strict=True):
        np.testing.assert_array_equal(K, FusedEngine(lower(kernel)).matrix(x))


def test_another_width_is_refused():
    run = subprocess.run(
        [sys.executable, "-c", "import cnn_gp.engines.fused.simd"],
        env=os.environ | {"CNN_GP_SIMD_WIDTH": "4"},
        capture_output=True,
        text=True,
    )
    assert run.returncode
    assert "CNN_GP_SIMD_WIDTH is '4'; expected 8 or 16" in run.stderr


def test_a_change_in_any_source_that_enters_the_machine_code_compiles_it_again(tmp_path):
    """On a copy of the package, with a small function in the place of loops.py's."""
    package = tmp_path / "cnn_gp"
    shutil.copytree(Path(datasets.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    fused = package / "engines" / "fused"
    (fused / "small.py").write_text(
        "import numpy as np\n"
        "from ...kernels.polynomials import ASIN_QUARTER\n"
        "from .cache import is_kept, kept\n"
        "from .simd import WIDTH, fma, load, splat, store\n"
        "CONSTANT = np.float32(ASIN_QUARTER[0])\n"
        "@kept\n"
        "def small(array):\n"
        "    store(array, 0, fma(load(array, 0), splat(CONSTANT), load(array, 0)))\n"
        "array = np.full(WIDTH, 3, np.float32)\n"
        "before = is_kept(small)\n"
        "small(array)\n"
        "print(before, sum(small.stats.cache_hits.values()), is_kept(small), array[0])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}

    def run():
        command = [sys.executable, "-c", "import cnn_gp.engines.fused.small"]
        options = {"cwd": tmp_path, "env": environment | {"PYTHONPATH": str(tmp_path)}}
        return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.split()

    def edit(path, old, new):
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    assert run() == ["False", "0", "True", "6.0"]
    assert run() == ["True", "1", "True", "6.0"]
    edit(package / "kernels" / "polynomials.py", "(0.999999996, ", "(2.0, ")
    assert run() == ["False", "0", "True", "9.0"]
    edit(fused / "simd.py", '_llvm_function("fma", 3)', '_select(">")')
    assert run() == ["False", "0", "True", "2.0"]
    assert run() == ["True", "1", "True", "2.0"]


def test_it_knows_whether_it_is_compiled():
    FusedEngine(lower(KERNELS["a readout alone"][0])).matrix(images(KERNELS["a readout alone"][0], 4))
    assert is_compiled()
