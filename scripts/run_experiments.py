"""
Both stages of several runs, one after the other, and the report; run_all_experiments.bash calls it.

    python scripts/run_experiments.py --path=runs --dataset=digits --runs=convnet_gp,resnet_gp,1,2,3

Started again with the same flags it goes on where it was.
"""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.errors import ShrunkMapError, UserError
from cnn_gp.kernels.architectures import run_name
from cnn_gp.script_process import run_script

FLAGS = flags.FLAGS
shared_flags.define_path()
shared_flags.define_data_set()
shared_flags.define_sizes()
shared_flags.define_runs()
shared_flags.define_n_max()
shared_flags.define_devices()
shared_flags.define_csv_dir()
flags.DEFINE_bool("keep_tiles", True, "False deletes a run's tiles once its result is on disk and its residual small.")
flags.DEFINE_string("extras", "", "Further flags of classify_gp.py, separated by spaces.")

#: What the report's pages need: the package's [figures] extra.
_FOR_PAGES = ("matplotlib", "jinja2")


def main() -> None:
    """Parse the flags, say how large the job is, compute and classify each run, write the report."""
    runs, extras = shared_flags.runs(), _extras()
    if not FLAGS.n_gpus:
        _import_what_scripts_need()
    sizes = _given("N_train", "N_vali", "N_test")
    results = _given("csv_dir")
    job = [*_given("dataset", "data_dir", "n_max", "n_gpus", "batch_size"), *sizes]
    _run("job_size", *job, *_given("runs", "kernel", "pool"))
    shrunk = []
    for model, seed, kernel, pool in runs:
        name = run_name(model, seed, kernel, pool)
        run = [f"--path={FLAGS.path}", f"--model={model}", f"--pool={pool or 'none'}", f"--kernel={kernel}"]
        run += [f"--seed={seed}"] if model == "random" else []
        print()
        # Where its result is there, stage 2 only checks and prints it.
        is_there = Path(FLAGS.path, FLAGS.csv_dir, f"{name}.json").exists()
        if not is_there and _run("save_kernels", *job, *run, may_end_in=ShrunkMapError.exit_status):
            print(f"{name} is skipped: its network shrinks below one pixel.")
            shrunk.append(name)
            continue
        keep = "--keep_tiles" if FLAGS.keep_tiles else "--nokeep_tiles"
        _run("classify_gp", *sizes, *run, *results, *extras, keep)
    print()
    if shrunk:
        print(f"No kernel, because the network shrinks below one pixel: {' '.join(shrunk)}")
    _run("report", f"--path={FLAGS.path}", *results, "--figures" if all(map(find_spec, _FOR_PAGES)) else "--nofigures")


def _extras() -> list[str]:
    """The flags in --extras. :raises UserError: where its quotes aren't closed, or they move the results elsewhere."""
    try:
        extras = shlex.split(FLAGS.extras)
    except ValueError as error:
        raise UserError(
            f"--extras is {FLAGS.extras!r} ({error}); expected flags separated by spaces, such as --variances."
        ) from error
    if any(word.lstrip("-").split("=")[0] == "csv_dir" for word in extras):
        raise UserError("--extras has --csv_dir, which says where results are looked for too: give it by itself.")
    return extras


def _run(script: str, *arguments: str, may_end_in: int = 0) -> int:
    """
    Run a script beside this one to its end, and end with it if it fails.

    :param may_end_in: an exit status that isn't a failure.
    :return: its exit status.
    """
    path = Path(__file__).parent / f"{script}.py"
    status = run_script(path, *arguments, anew=FLAGS.n_gpus > 0)
    if status not in (0, may_end_in):
        sys.exit(status)
    return status


def _given(*names: str) -> list[str]:
    """The flags of these names that were given, as they were."""
    return [FLAGS[name].serialize() for name in names if FLAGS[name].present]


def _import_what_scripts_need() -> None:
    """Import TensorFlow and the engines once, for all the scripts that are forked from this process."""
    with cli.without_startup_messages():
        import cnn_gp.engines.fused.engine
        import cnn_gp.engines.tensorflow
        import cnn_gp.kernels.nngp  # noqa: F401


if __name__ == "__main__":
    cli.run(main)
