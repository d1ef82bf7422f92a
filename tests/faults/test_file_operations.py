"""
Stage 1, killed before each of its file operations, or with one that fails.

Started again it gives the bytes of an undisturbed run. Where an operation fails it gives these at once, or it refuses
with one line: never a traceback, a hang, or a file of anything else.
"""

import errno
import functools
import itertools
import shutil

import h5py
import pytest

from cnn_gp.compute.scheduler import compute_run
from cnn_gp.errors import UserError
from helpers.forked import run_forked
from helpers.killing import FAILED, KILLED, Fault, kill_before
from helpers.matrices import bytes_of
from helpers.small_runs import NumpyEngine, begin, job_of, make_data
from helpers.waiting import within

CODES = [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE]
#: More operations than a run has.
MANY = 1000


# What stage 1 finds when it starts -----------------------------------------------------------------------------------


def fresh(workdir):
    shutil.rmtree(workdir / "small")
    (workdir / "small.h5").unlink()


def resumed(workdir):
    (workdir / "small.h5").unlink()
    (workdir / "small" / "images.h5").unlink()
    parts = sorted((workdir / "small").glob("K*.h5"))
    parts[0].unlink()
    parts[-1].write_bytes(parts[-1].read_bytes()[:-100])


def without_a_view(workdir):
    (workdir / "small.h5").unlink()


def to_be_verified(workdir):
    path = min((workdir / "small").glob("K*.h5"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def what_is_there(workdir):
    """Every number and label of the view, which shows all parts."""
    with h5py.File(workdir / "small.h5") as file:
        return {name: values[()].tobytes() for name, values in file.items()}


def is_tidy(workdir):
    """Whether nothing is there but what is to be."""
    return not list(workdir.rglob(".*")) and not list(workdir.rglob("*.claim")) and not list(workdir.rglob("*.npz"))


# The scripts ----------------------------------------------------------------------------------------------------------

STAGE_1 = ["--dataset=digits", "--N_train=60", "--N_vali=20", "--N_test=30", "--model=convnet_gp", "--run_name=small"]


def save(workdir, *flags, **options):
    return run_forked("save_kernels", *STAGE_1, "--n_max=60", f"--path={workdir}", *flags, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert save(workdir).status == 0
    return workdir


@pytest.mark.long
@pytest.mark.parametrize("state", [fresh, resumed, without_a_view, to_be_verified])
def test_killed_before_each_operation_and_started_again(whole, tmp_path, state):
    flags = ["--verify"] if state is to_be_verified else []
    for number in range(MANY):
        workdir = shutil.copytree(whole, tmp_path / str(number))
        state(workdir)
        disturbed = save(workdir, *flags, before=functools.partial(kill_before, number, str(workdir)))
        assert disturbed.status in (0, KILLED) and not disturbed.stderr, (number, disturbed)
        if disturbed.status == KILLED:
            ended = save(workdir, *flags)
            assert ended.status == 0, (number, ended.stderr)
        assert bytes_of(workdir / "small") == bytes_of(whole / "small"), number
        assert what_is_there(workdir) == what_is_there(whole), number
        assert is_tidy(workdir), (number, sorted(workdir.rglob("*")))
        shutil.rmtree(workdir)
        if disturbed.status == 0:
            break
    print(f"{number} operations, each killed before")
    assert 3 < number < MANY - 1


@pytest.mark.long
def test_an_operation_of_the_script_that_fails_is_survived_or_one_line(whole, tmp_path):
    """At every third operation the next of the errors, once or from then on; all of them at each are below."""
    faults = itertools.cycle(itertools.product([False, True], CODES))
    missed = 0
    for number, (lasting, code) in zip(range(0, MANY, 3), faults, strict=False):
        workdir = tmp_path / str(number)
        workdir.mkdir()
        fault = Fault(number, str(workdir), code, lasting)
        ended = save(workdir, before=fault.begin)
        assert (ended.status == 0 and not ended.stderr) or ended.is_one_line, (fault, ended)
        missed = 0 if FAILED in ended.stdout else missed + 1
        assert not missed or ended.status == 0, (fault, ended)
        ended = save(workdir)
        assert ended.status == 0, (fault, ended.stderr)
        assert what_is_there(workdir) == what_is_there(whole), fault
        assert is_tidy(workdir), (fault, sorted(workdir.rglob("*")))
        shutil.rmtree(workdir)
        # Some of the errors count reading, too.
        if missed == len(CODES):
            break
    assert missed == len(CODES) and number > 50


# Without the seconds that a script takes: every error at every operation ---------------------------------------------


@pytest.fixture
def parts_of_several_rows_and_little_patience(monkeypatch):
    monkeypatch.setattr("cnn_gp.store.tiling.MAX_PARTS", 6)
    # For a claim that couldn't be given back: unlike that of a script, its process is alive.
    monkeypatch.setattr("cnn_gp.compute.scheduler._POLL", 0.02)


def stage_1(workdir, verify=False):
    run = begin(workdir, make_data())
    if verify:
        for part in run.parts.missing(verify=True)[0]:
            run.parts.discard(part)
    compute_run(job_of(run, lambda device: NumpyEngine(), claim_timeout=0.1))


@pytest.mark.long
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("state", [fresh, resumed, without_a_view, to_be_verified])
@pytest.mark.usefixtures("parts_of_several_rows_and_little_patience")
def test_an_operation_that_fails_is_survived_or_one_line(tmp_path, state, code, lasting):
    stage_1(tmp_path / "whole")
    expected = what_is_there(tmp_path / "whole")
    verify = state is to_be_verified
    for number in range(MANY):
        workdir = shutil.copytree(tmp_path / "whole", tmp_path / "disturbed")
        state(workdir)
        with Fault(number, str(workdir), code, lasting) as fault, within(60):
            try:
                stage_1(workdir, verify)
            except UserError as error:
                assert fault.happened and "\n" not in str(error), fault
            else:
                assert what_is_there(workdir) == expected, fault
        with within(60):
            stage_1(workdir, verify)
        assert what_is_there(workdir) == expected, fault
        shutil.rmtree(workdir)
        if not fault.happened:
            break
    print(f"{number} operations, each failed")
    assert 3 < number < MANY - 1
