"""
Every kind of file, damaged at random, before every script that reads it.

What a script may do then: give the right numbers, or refuse with one line on standard error. It may not give wrong
numbers, end in a traceback, or hang. ``CNN_GP_CASES`` is the number of cases, 300 by default.
"""

import collections
import functools
import json
import os
import random
import shutil
import signal

import numpy as np
import pytest

from cnn_gp.store.run_directory import RunDirectory
from helpers.forked import run_forked
from helpers.killing import kill_after_states
from helpers.matrices import bytes_of

CASES = int(os.environ.get("CNN_GP_CASES", "300"))
SHARDS = 20
MODEL = "--model=convnet_gp"
STAGE_1 = ["--dataset=digits", "--N_train=60", "--N_vali=20", "--N_test=30", "--n_max=25", MODEL]
#: What a result may not differ in.
NUMBERS = (
    "N_train N_vali N_test training_error validation_error test_error jitter log_marginal_likelihood scores fingerprint"
).split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with its result, predictions and images to predict."""
    workdir = tmp_path_factory.mktemp("whole")
    np.savez(workdir / "new.npz", x=np.random.default_rng(0).random((5, 8, 8)).astype(np.float32))
    for command in (
        ("save_kernels", *STAGE_1, f"--path={workdir}"),
        ("classify_gp", f"--path={workdir}", MODEL, "--variances", "--learning_curve=20,60"),
        ("classify_gp", f"--path={workdir}", MODEL, "--learning_curve=20", "--N_train=40", "--csv_dir=fewer"),
        ("classify_gp", f"--path={workdir}", MODEL, "--solver=cg", "--csv_dir=cg"),
        ("predict", f"--path={workdir}", MODEL, f"--images={workdir}/new.npz", f"--out={workdir}/new.csv"),
        ("report", f"--path={workdir}"),
    ):
        ended = run_forked(*command)
        assert ended.status == 0, ended.stderr
    command = ("classify_gp", f"--path={workdir}", MODEL, "--solver=cg", "--csv_dir=killed")
    for iterations in (2, 4):
        ended = run_forked(*command, before=functools.partial(kill_after_states, iterations))
        assert ended.status == -signal.SIGKILL
        (state,) = workdir.glob("convnet_gp/*.state.npz")
        (workdir / f"after_{iterations}").mkdir()
        state.rename(workdir / f"after_{iterations}" / state.name)
    return workdir


# The damage ----------------------------------------------------------------------------------------------------------


def flip(data, rng):
    position = rng.randrange(len(data))
    data[position] ^= 1 << rng.randrange(8)
    return data


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def empty(data, rng):
    return bytearray()


def zero(data, rng):
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 64, 4096]))
    data[start:stop] = bytes(stop - start)
    return data


def noise(data, rng):
    return bytearray(rng.randbytes(len(data)))


def more(data, rng):
    return data + rng.randbytes(rng.choice([1, 100]))


def digit(data, rng):
    """Another digit in a text, or a bit elsewhere: what a parser wouldn't notice."""
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return flip(data, rng)
    place = rng.choice(places)
    data[place] = ord(rng.choice([c for c in "0123456789" if ord(c) != data[place]]))
    return data


BYTES = [flip] * 6 + [cut, empty, zero, noise, more] + [digit] * 3


def damage(path, others, rng):
    """Change a file in place. :return: what was done."""
    kind = rng.choice(["bytes"] * 12 + ["gone", "other", "folder", "dangling"])
    if kind == "bytes":
        change = rng.choice(BYTES)
        before = path.read_bytes()
        after = bytes(change(bytearray(before), rng)) if before else before
        path.write_bytes(after)
        return change.__name__
    if kind == "other":
        other = rng.choice([o for o in others if o != path] or [path])
        content = other.read_bytes()
        path.write_bytes(content)
        return f"content of {other.name}"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nowhere")
    return kind


# Who reads it --------------------------------------------------------------------------------------------------------


def result_of(workdir, folder="results"):
    result = json.loads((workdir / folder / "convnet_gp.json").read_text())
    return {name: result.get(name) for name in NUMBERS}


def same_result(workdir, whole, folder="results", expected_in="results"):
    assert result_of(workdir, folder) == result_of(whole, expected_in)
    with (
        np.load(workdir / folder / "convnet_gp_predictions.npz") as there,
        np.load(whole / expected_in / "convnet_gp_predictions.npz") as expected,
    ):
        assert set(there) == set(expected)
        for name in {"alpha", "vali", "test", "variances_test"}.intersection(expected):
            np.testing.assert_array_equal(there[name], expected[name])


def save(workdir, whole):
    # Without --verify the content of a part that is done is read, and found damaged, by stage 2 only.
    ended = run_forked("save_kernels", "--verify", *STAGE_1, f"--path={workdir}")
    if ended.status == 0:
        assert bytes_of(workdir / "convnet_gp") == bytes_of(whole / "convnet_gp")
    return ended


def status(workdir, whole):
    return run_forked("save_kernels", "--status", f"--path={workdir}", MODEL)


def verify(workdir, whole):
    ended = run_forked("save_kernels", "--status", "--verify", f"--path={workdir}", MODEL)
    if ended.status == 0 and "6 of 6 parts done" in ended.stdout:
        assert bytes_of(workdir / "convnet_gp") == bytes_of(whole / "convnet_gp")
    return ended


def classify(workdir, whole):
    ended = run_forked(
        "classify_gp", f"--path={workdir}", MODEL, "--variances", "--learning_curve=20,60", "--csv_dir=again"
    )
    if ended.status == 0:
        same_result(workdir, whole, "again")
    return ended


def classify_by_cg(workdir, whole):
    """A state that is whole is gone on with; any other isn't."""
    ended = run_forked("classify_gp", f"--path={workdir}", MODEL, "--solver=cg", "--csv_dir=again")
    if ended.status == 0:
        same_result(workdir, whole, "again", "cg")
    return ended


def classify_again(workdir, whole):
    """Where the result is there already, it is read."""
    ended = run_forked("classify_gp", f"--path={workdir}", MODEL, "--variances", "--learning_curve=20,60")
    if ended.status == 0:
        same_result(workdir, whole)
    return ended


def predict(workdir, whole):
    flags = (f"--path={workdir}", MODEL, f"--images={workdir}/new.npz", f"--out={workdir}/again.csv")
    ended = run_forked("predict", *flags)
    if ended.status == 0:
        assert (workdir / "again.csv").read_text() == (whole / "new.csv").read_text()
    return ended


def report(workdir, whole):
    ended = run_forked("report", f"--path={workdir}", "--nofigures")
    if ended.status == 0:
        table = run_forked("report", f"--path={whole}", "--nofigures").stdout
        assert ended.stdout == table
    return ended


def report_with_figures(workdir, whole):
    """A section is left out where its file is gone; whatever is drawn is what the whole result gives."""
    ended = run_forked("report", f"--path={workdir}")
    if ended.status == 0:
        for path in (workdir / "results" / "figures").iterdir():
            assert path.read_bytes() == (whole / "results" / "figures" / path.name).read_bytes(), path.name
        told = (workdir / "results" / "report.md").read_text().strip().split("\n\n")
        told = [paragraph for paragraph in told if not paragraph.startswith("Without figures, because")]
        assert set(told) <= set((whole / "results" / "report.md").read_text().strip().split("\n\n"))
    return ended


RUN = [save, status, verify, classify, predict]
RESULT = [classify_again, predict, report]
KINDS = {
    "part": ("convnet_gp/K*.h5", [save, status, verify, classify]),
    "description": ("convnet_gp/run.*", [*RUN, classify_again, report]),
    "images": ("convnet_gp/images.*", [save, verify, classify, predict]),
    "view": ("convnet_gp.h5", [save, verify, classify]),
    "result": ("results/convnet_gp.json", RESULT),
    "predictions": ("results/convnet_gp_predictions.npz", [*RESULT, report_with_figures]),
    "tables": ("results/convnet_gp*.csv", RESULT),
}


def claims(workdir, rng):
    """A claim of a part that isn't there, of any content."""
    part = workdir / "convnet_gp" / "Kxtx_0000.h5"
    part.unlink()
    folder = workdir / "convnet_gp" / "claims"
    folder.mkdir(exist_ok=True)
    claim = folder / "Kxtx_0000.claim"
    content = rng.choice(
        ["null", "5", "[]", "{}", '{"host": 3}', "x", "", '{"pid": "a", "host": "b", "started": null}']
    )
    kind = rng.choice(["content", "content", "folder", "dangling"])
    if kind == "content":
        claim.write_text(content)
        # Its owner has been silent for long.
        os.utime(claim, (1e9, 1e9))
    elif kind == "folder":
        claim.mkdir()
        os.utime(claim, (1e9, 1e9))
    else:
        claim.symlink_to("nowhere")
        os.utime(claim, (1e9, 1e9), follow_symlinks=False)
    return f"{kind} {content if kind == 'content' else ''}"


def rows_put_aside(workdir, rng):
    """Half a row that a killed worker put aside, damaged; its part isn't there."""
    run = RunDirectory(workdir, "convnet_gp")
    parts = [part for part in run.description().tiling.parts() if part.rows[0].matrix == "Kxx"]
    stored = {row.start: entries for row, entries in run.parts.read_rows("Kxx")}
    kept = rng.sample(parts, 2)
    for part in kept:
        (row,) = part.rows
        entries = stored[row.start].copy()
        entries[:, row.n_columns // 2 :] = np.nan
        run.kept_rows.keep(part, row, entries, None, "fused", 1.0)
        (run.folder / f"{part.name}.h5").unlink()
    path, other = (run.folder / f"{part.name}.row_{part.rows[0].start}.npz" for part in kept)
    return damage(path, [other], rng)


def state_of_a_solve(workdir, rng):
    """What a solve that was killed has kept, damaged."""
    (state,), others = workdir.glob("after_2/*"), list(workdir.glob("after_4/*"))
    path = workdir / "convnet_gp" / state.name
    shutil.copy(state, path)
    return damage(path, others, rng)


# The cases -----------------------------------------------------------------------------------------------------------


#: Files that aren't there in a finished run.
MADE = {
    "claim": (claims, [save, status]),
    "rows put aside": (rows_put_aside, [save, status]),
    "state of a solve": (state_of_a_solve, [classify_by_cg]),
}


@pytest.mark.long
@pytest.mark.parametrize("shard", range(SHARDS))
def test_right_numbers_or_one_line(whole, tmp_path, shard):
    outcomes = collections.Counter()
    wrong = []
    for case in range(shard, CASES, SHARDS):
        rng = random.Random(case)
        workdir = tmp_path / str(case)
        shutil.copytree(whole, workdir)
        kind = rng.choice([*KINDS, *MADE])
        if kind in MADE:
            make, consumers = MADE[kind]
            done, consumer, name = make(workdir, rng), rng.choice(consumers), kind
        else:
            pattern, consumers = KINDS[kind]
            files = sorted(workdir.glob(pattern))
            path = rng.choice(files)
            others = files + sorted(workdir.glob(f"fewer/{path.name}"))
            done, consumer, name = damage(path, others, rng), rng.choice(consumers), path.name
        label = f"case {case}: {name}, {done}, {consumer.__name__}"
        try:
            ended = consumer(workdir, whole)
        except Exception as error:
            wrong.append(f"{label}: wrong numbers: {' '.join(str(error).split())[:200]}")
            continue
        if ended.status is None:
            wrong.append(f"{label}: hangs")
        elif ended.status != 0 and not ended.is_one_line:
            wrong.append(f"{label}: status {ended.status}: {ended.stderr[-300:]}")
        outcomes[kind, consumer.__name__, "right" if ended.status == 0 else "one line"] += 1
        shutil.rmtree(workdir)
    print(*(f"{count:4} {' / '.join(what)}" for what, count in sorted(outcomes.items())), sep="\n")
    assert not wrong, "\n".join(wrong)
