"""Stage 1 as a whole: what is checked first, what is said, and that the batch's size is no part of the run."""

import re
import subprocess
import sys

import pytest

from cnn_gp import memory
from cnn_gp.compute.compute_kernels import Request, compute_kernels
from cnn_gp.compute.status import ENGINES_DIFFER, status
from cnn_gp.engines.choice import Choice, engine_on_device
from cnn_gp.errors import UserError
from helpers.paths import ROOT

SIZES = {"N_train": 60, "N_vali": 20, "N_test": 30, "n_max": 25}


def request(path, **changes):
    return Request(path=path, **{"model": "convnet_gp", **SIZES, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_max": 0}, "--n_max is 0; expected a whole number of at least 1"),
        ({"n_gpus": -1}, "--n_gpus is -1; expected a whole number of at least 0"),
        ({"batch_size": 0}, "--batch_size is 0"),
        ({"n_threads": 0}, "--n_threads is 0"),
        ({"zca": 0.0}, "--zca is 0.0; expected a finite number above 0, such as 1e-2"),
        ({"zca": float("nan")}, "--zca is nan"),
        ({"shard": (3, 2)}, "--shard is 3/2; expected i/n"),
        ({"engine": "fast"}, "--engine is 'fast'; expected one of auto, tensorflow, fused"),
        ({"float_type": "float16"}, "--float_type is 'float16'; expected one of float32, float64"),
        ({"kernel_arguments": {"dpeth": 8}}, "kernel_arguments has 'dpeth'; expected some of allow_skip, skip_rule, d"),
        ({"kernel_arguments": {"pool": 3}}, "kernel_arguments has 'pool'; expected some of allow_skip"),
        (
            {"kernel_arguments": {"var_bias": 1.0}},
            "--var_bias makes another kernel than convnet_gp's: give it a --run_name of its own",
        ),
        (
            {"model": "resnet_gp", "kernel_arguments": {"depth": 8, "n_blocks": 1}, "run_name": "resnet_gp"},
            "--depth and --n_blocks make another kernel than resnet_gp's: give it a --run_name of its own",
        ),
        ({"kernel_arguments": {"depth": 8}}, "depth is given for convnet_gp, and only resnet_gp has it: leave it"),
        ({"model": "random", "kernel_arguments": {"skip_rule": "released"}}, "--skip_rule makes another kernel"),
    ],
)
def test_what_a_request_cannot_be(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        request(tmp_path, **changes)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--path={file}/runs"], "/file is a file, not a folder"),
        (["--path={folder}", "--run_name=.."], "The run's name is '..'"),
        (["--path={folder}", "--n_max=0"], "--n_max is 0"),
        (["--path={folder}", "--model=random", "--seed=-1"], "The seed is -1"),
        (["--path={folder}", "--model=resnet_gp", "--depth=9", "--run_name=x"], "The ResNet's depth is 9"),
        (["--path={folder}", "--var_weight=nan", "--run_name=x"], "var_weight is nan; expected a finite number"),
        (["--path={folder}", "--shard=2"], "--shard is '2'"),
        (["--path={folder}", "--N_train=2000"], "1400 images"),
        (["--path={folder}", "--N_test=0"], "N_test is 0"),
    ],
)
def test_mistakes_are_found_before_tensorflow_is_imported(tmp_path, flags, said):
    (tmp_path / "file").write_text("")
    flags = [flag.format(file=tmp_path / "file", folder=tmp_path / "runs") for flag in flags]
    program = (
        "import runpy, sys; sys.modules['tensorflow'] = None; del sys.argv[0];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, str(ROOT / "scripts" / "save_kernels.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_of_two_engines_and_batch_sizes_says_so(tmp_path):
    said: list[str] = []
    run = compute_kernels(request(tmp_path, engine="fused"), said.append)
    # Said where no test before has compiled it.
    said = [line for line in said if not line.startswith("The fused engine is compiled")]
    assert said[0] == "digits: images of 8 x 8 pixels, 1 channel, values from 0 to 1."
    assert said[1].startswith(
        "convnet_gp on digits: 60 training, 20 validation and 30 test images; 15 tiles, 4,830 ker"
    )
    assert said[2] == f"A kernel entry takes 897 covariances, the run {897 * 4830:,}."
    assert re.fullmatch(
        r"What is missing takes about \d+ s on this machine, by a measurement of this moment\.", said[3]
    )
    assert said[-2:] == ["Engine: fused.", f"convnet_gp is complete: {run.view_path}"]
    fingerprint = run.description().fingerprint

    (run.folder / "Kxx_0001.h5").unlink()
    said.clear()
    again = compute_kernels(request(tmp_path, engine="tensorflow", batch_size=8), said.append)
    assert again.description().fingerprint == fingerprint
    assert "5 of 6 parts are there already." in said
    assert said[-2] == (f"The parts that are there were computed by the fused engine (5 parts): {ENGINES_DIFFER}.")
    assert "computed by the fused engine (5 parts) and the tensorflow engine (1 part)\n  entries of two" in status(run)

    # Nothing is left to compute: nothing is said of other engines.
    said.clear()
    compute_kernels(request(tmp_path, engine="fused"), said.append)
    assert not any("differ" in line or "takes about" in line for line in said)


def test_the_batch_size_of_a_worker():
    kernel = {"input_shape": [4], "network": {"layer": "Dense", "var_weight": 1.0, "var_bias": 0.0}}
    sizes = [
        engine_on_device(
            "cpu", choice=Choice("tensorflow"), kernel=kernel, n_max=n_max, batch_size=batch_size
        )._batch_size
        for n_max, batch_size in ((200, 8), (200, None), (6, None))
    ]
    assert sizes == [8, 16, 16]


def test_the_runs_name():
    assert Request("runs", "random").run_directory().name == "seed_53"
    assert Request("runs", "random", seed=7).run_directory().name == "seed_07"
    assert Request("runs", "convnet_gp", run_name="other").run_directory().name == "other"
    assert Request("runs", "convnet_gp", kernel="ntk", pool=5).run_directory().name == "convnet_gp_pool_5_ntk"


def test_a_pooled_kernel_that_does_not_fit_into_memory_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(UserError, match="An entry of this pooled kernel at a time on each of"):
        compute_kernels(request(tmp_path / "runs", model="myrtle5", engine="tensorflow"), print)
    assert not (tmp_path / "runs").exists()
