"""Results of killed, concurrent and mistaken programs: whole ones of before or of after, never mixed or poorer."""

import errno
import functools
import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from helpers.forked import run_forked
from helpers.killing import (
    FAILED,
    KILLED,
    Fault,
    begin_no_solve,
    keep_states_and_kill_before,
    kill_after_states,
    kill_before,
)

MODEL = "--run_name=small"
STAGE_1 = ["--dataset=digits", "--N_train=60", "--N_vali=20", "--N_test=30", "--n_max=25", "--model=convnet_gp", MODEL]
#: What isn't a number that classify finds: it differs from one process to the next.
OTHER = {"id", "files", "sha256", "command", "times", "peak_memory_bytes"}


def ended_well(name, *flags, **options):
    ended = run_forked(name, *flags, **options)
    assert ended.status == 0, ended.stderr
    return ended


def refused(ended, said):
    assert ended.is_one_line and said in ended.stderr, ended


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run without a result, and images to predict."""
    workdir = tmp_path_factory.mktemp("run")
    np.savez(workdir / "new.npz", x=np.random.default_rng(0).random((3, 8, 8)).astype(np.float32))
    ended_well("save_kernels", *STAGE_1, f"--path={workdir}")
    return workdir


@pytest.fixture
def workdir(run, tmp_path):
    return shutil.copytree(run, tmp_path / "workdir")


def classify(workdir, *flags, **options):
    return run_forked("classify_gp", f"--path={workdir}", MODEL, *flags, **options)


def numbers(workdir):
    """What the result's files hold, where they belong together; None where there is none."""
    path = workdir / "results" / "small.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    with np.load(workdir / "results" / "small_predictions.npz") as arrays:
        kept = {name: arrays[name].tobytes() for name in arrays}
        assert len(arrays["alpha"]) == values["N_train"]
    return {key: value for key, value in values.items() if key not in OTHER}, kept


def predicted(workdir):
    """What predict.py writes; None where it refuses, in one line."""
    flags = [f"--path={workdir}", MODEL, f"--images={workdir}/new.npz", f"--out={workdir}/new.csv", "--overwrite"]
    ended = run_forked("predict", *flags)
    if ended.status != 0:
        refused(ended, "start classify_gp.py")
        return None
    return (workdir / "new.csv").read_text()


def reported(workdir):
    """The table that report.py prints; None where it refuses, in one line."""
    ended = run_forked("report", f"--path={workdir}", "--nofigures")
    if ended.status != 0:
        refused(ended, "There are no results")
        return None
    return ended.stdout


def seen_by_all(workdir):
    """What report and predict say of the result, then its files' content."""
    return reported(workdir), predicted(workdir), numbers(workdir)


def check_ended(workdir, after, number):
    """What started again and ended is as it is to be; every fourth time also by what report and predict say of it."""
    assert numbers(workdir) == after[-1], number
    if number % 4 == 0:
        assert seen_by_all(workdir) == after, number


def test_a_result_of_another_kernel_is_refused(workdir):
    """As an error of stage 1 advises: the folder is deleted, and the run is computed with other hyperparameters."""
    assert classify(workdir).status == 0
    assert predicted(workdir) is not None
    shutil.rmtree(workdir / "small")
    (workdir / "small.h5").unlink()
    ended_well("save_kernels", *STAGE_1, f"--path={workdir}", "--var_weight=2")
    flags = [f"--path={workdir}", MODEL, f"--images={workdir}/new.npz", f"--out={workdir}/other.csv"]
    refused(run_forked("predict", *flags), "small.json was computed from another kernel than the one that is there now")
    assert not (workdir / "other.csv").exists()
    refused(classify(workdir), "small.json holds another result (fingerprint is")
    assert classify(workdir, "--overwrite").status == 0
    ended_well("predict", *flags)


def test_a_damaged_file_of_a_result_is_made_again_with_all_that_was_there(workdir):
    asked = ["--variances", "--learning_curve=20,60", "--leave_one_out"]
    assert classify(workdir, *asked).status == 0
    whole = seen_by_all(workdir)
    for name in ("small_predictions.npz", "small.csv", "small_learning_curve.csv"):
        path = workdir / "results" / name
        content = path.read_bytes()
        for damaged in (content[:-1], None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            if name == "small_predictions.npz":
                assert predicted(workdir) is None
            ended = classify(workdir)
            assert ended.status == 0 and "it is computed again" in ended.stdout
            assert path.exists() and numbers(workdir) == whole[-1]
    assert seen_by_all(workdir) == whole


def test_places_that_cant_be_results_are_refused(workdir):
    (workdir / "file").write_text("")
    (workdir / "results").mkdir()
    (workdir / "results" / "small.json").mkdir()
    for place in ("x" * 300, "file", "results"):
        folder = f"--csv_dir={place}"
        predict = ["predict", MODEL, f"--images={workdir}/new.npz", f"--out={workdir}/new.csv"]
        for name, *flags in (["classify_gp", MODEL], ["report"], predict):
            ended = run_forked(name, *flags, f"--path={workdir}", folder)
            assert ended.is_one_line, (place, ended)
    ended = run_forked(*predict[:-1], f"--out={workdir}/{'x' * 300}", f"--path={workdir}")
    assert ended.is_one_line, ended


def test_of_two_programs_with_other_settings_one_is_refused(workdir):
    """Whichever comes second: while the first is at work, or after it."""
    for number in range(6):
        folder = f"--csv_dir=results_{number}"
        with ThreadPoolExecutor(2) as pool:
            started = [pool.submit(classify, workdir, f"--N_train={N}", folder, "--variances") for N in (60, 40)]
        both = [future.result() for future in started]
        assert sorted(ended.status for ended in both) == [0, 1], both
        (loser,) = (ended for ended in both if ended.status == 1)
        assert loser.is_one_line, loser.stderr
        winners = (60, 40)[both.index(loser) == 0]
        shutil.rmtree(workdir / "results", ignore_errors=True)
        (workdir / f"results_{number}").rename(workdir / "results")
        values, _ = numbers(workdir)
        assert (values["N_train"], values["extras"]) == (winners, ["variances"])
        assert "is there already" in classify(workdir, f"--N_train={winners}", "--variances").stdout


def killed_at_every_operation(workdir, before, flags, after, tmp_path):
    """
    classify_gp.py, ended before each of its file operations in turn.

    :param before: what all programs see before it began.
    :param after: what they see once it was started again and ended.
    :return: the different things that they saw after a kill.
    """
    seen = []
    for number in range(200):
        copy = shutil.copytree(workdir, tmp_path / str(number))
        ended = classify(copy, *flags, before=functools.partial(kill_before, number, str(copy)))
        assert ended.status in (0, KILLED), ended.stderr
        assert ended.status != KILLED or not ended.stderr
        found = seen_by_all(copy)
        if found not in seen:
            seen.append(found)
        again = classify(copy, *flags)
        assert again.status == 0, again.stderr
        check_ended(copy, after, number)
        left = {path.name for folder in (copy, copy / "results") for path in folder.glob(".*")}
        # Of a process that was killed while it held it; the next that writes removes it.
        assert left <= {".small.json.lock"}, (number, left)
        shutil.rmtree(copy)
        if ended.status == 0:
            assert found == after
            break
    else:
        pytest.fail("it has no end")
    assert number > 10 and seen[0] == before and seen[-1] == after
    return seen


@pytest.fixture(scope="module")
def expected(run, tmp_path_factory):
    """What all programs see of the results that the kills are to lead to, by their flags."""

    @functools.cache
    def see(*flags):
        workdir = shutil.copytree(run, tmp_path_factory.mktemp("expected") / "workdir")
        assert classify(workdir, *flags).status == 0
        return seen_by_all(workdir)

    return see


@pytest.mark.long
def test_killed_at_any_moment_a_first_result_is_whole(workdir, expected, tmp_path):
    seen = killed_at_every_operation(workdir, (None,) * 3, ["--variances"], expected("--variances"), tmp_path)
    # Nothing, the errors, and all.
    assert seen == [(None,) * 3, expected(), expected("--variances")]


@pytest.mark.long
def test_killed_at_any_moment_a_result_is_replaced_or_kept(workdir, expected, tmp_path):
    assert classify(workdir, "--variances").status == 0
    flags = ["--overwrite", "--N_train=40", "--leave_one_out"]
    before, after = expected("--variances"), expected("--N_train=40", "--leave_one_out")
    assert killed_at_every_operation(workdir, before, flags, after, tmp_path) == [before, after]


@pytest.mark.long
def test_whichever_operation_fails_the_result_is_whole_and_one_line_says_so(workdir, expected, tmp_path):
    assert classify(workdir, "--leave_one_out").status == 0
    before, after = expected("--leave_one_out"), expected("--leave_one_out", "--variances")
    errors = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EDQUOT, errno.EACCES]
    failed = 0
    for number in range(200):
        copy = shutil.copytree(workdir, tmp_path / str(number))
        fail = Fault(number, str(copy), errors[number % len(errors)]).begin
        ended = classify(copy, "--variances", before=fail)
        assert ended.status == 0 or ended.is_one_line, (number, ended)
        failed += ended.status == 1
        assert seen_by_all(copy) in (before, after), number
        again = classify(copy, "--variances")
        assert again.status == 0, (number, again)
        check_ended(copy, after, number)
        shutil.rmtree(copy)
        if FAILED not in ended.stdout:
            break
    else:
        pytest.fail("it has no end")
    assert failed > 8


@pytest.mark.long
def test_what_killed_predictions_and_reports_leave_is_removed_by_the_next(workdir):
    assert classify(workdir, "--variances").status == 0
    results = workdir / "results"
    out = workdir / "predictions" / "new.csv"
    commands = {
        "predict": [f"--path={workdir}", MODEL, f"--images={workdir}/new.npz", f"--out={out}", "--overwrite"],
        "report": [f"--path={workdir}"],
    }
    written = {
        "predict": lambda: out.read_bytes(),
        "report": lambda: {path: path.read_bytes() for path in (results / "figures").glob("[!.]*")},
    }
    for name, flags in commands.items():
        ended_well(name, *flags)
        whole = written[name]()
        left = []
        # A new folder or a flush, then the open, the flush and the rename of each file.
        for number in range(6):
            ended = run_forked(name, *flags, before=functools.partial(kill_before, number, str(workdir)))
            assert ended.status == KILLED, ended.stderr
            left += [path for path in workdir.rglob(".*.tmp") if path not in left]
        assert left
        ended_well(name, *flags)
        assert written[name]() == whole
        assert not list(workdir.rglob(".*"))


@pytest.mark.long
def test_killed_at_any_moment_one_more_extra_loses_none(workdir, expected, tmp_path):
    had = ["--leave_one_out", "--learning_curve=20,60"]
    assert classify(workdir, *had).status == 0
    before, after = expected(*had), expected(*had, "--variances")
    assert killed_at_every_operation(workdir, before, ["--variances"], after, tmp_path) == [before, after]


# Conjugate gradients -------------------------------------------------------------------------------------------------

CG = ["--solver=cg", "--noise=1e-3"]


@pytest.fixture(scope="module")
def solved(run, tmp_path_factory):
    """The numbers of a solve by conjugate gradients that nothing interrupts."""
    workdir = shutil.copytree(run, tmp_path_factory.mktemp("solved") / "workdir")
    assert classify(workdir, *CG).status == 0
    assert not list((workdir / "small").glob("*.state.npz"))
    return numbers(workdir)


@pytest.mark.long
@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_a_killed_solve_goes_on_where_it_was(workdir, solved, iterations):
    assert solved[0]["iterations"] > iterations
    ended = classify(workdir, *CG, before=functools.partial(kill_after_states, iterations))
    assert ended.status == -signal.SIGKILL and numbers(workdir) is None
    (state,) = (workdir / "small").glob("*.state.npz")
    assert classify(workdir, *CG, before=begin_no_solve).status == 0
    assert numbers(workdir) == solved and not state.exists()


@pytest.mark.long
def test_a_solve_killed_while_its_state_is_written_ends_with_the_same_numbers(workdir, solved):
    for number in range(12):
        before = functools.partial(keep_states_and_kill_before, number, str(workdir / "small"))
        assert classify(workdir, *CG, before=before).status == KILLED
        ended = classify(workdir, *CG)
        assert ended.status == 0 and numbers(workdir) == solved, number
        assert not [path.name for path in (workdir / "small").iterdir() if "state" in path.name]
        shutil.rmtree(workdir / "results")
