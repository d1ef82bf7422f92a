"""
Stage 1: compute a kernel's matrices over a data set, block by block, into a working directory.

    python scripts/save_kernels.py --dataset=digits --model=resnet_gp --path=runs

Started again with the same flags it does only what is missing. Any number of these programs can work in one directory.
"""

import functools
from pathlib import Path

from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.cluster import connect
from cnn_gp.compute.claims import TIMEOUT
from cnn_gp.compute.scheduler import compute_run, describe_run, status
from cnn_gp.compute.worker import Job
from cnn_gp.data import datasets
from cnn_gp.engines.engine import ENGINES, choose_engine, worker_engine
from cnn_gp.errors import UserError
from cnn_gp.kernels.architectures import build_kernel

FLAGS = flags.FLAGS
shared_flags.define_run()
shared_flags.define_data_set()
shared_flags.define_sizes()
flags.DEFINE_bool("allow_skip", None, "With --model=random: allow skip connections; by default for seeds 36 to 60.")
flags.DEFINE_enum("skip_rule", "published", ["published", "released"], "With --model=random: who gets a skip.")
flags.DEFINE_integer("depth", 32, "With --model=resnet_gp: layers, 2 * n_blocks * n + 2.")
flags.DEFINE_integer("n_blocks", 3, "With --model=resnet_gp: blocks, each but the first of stride 2.")
flags.DEFINE_float("var_weight", None, "Weight variance in place of the model's own; needs --run_name.")
flags.DEFINE_float("var_bias", None, "Bias variance in place of the model's own; needs --run_name.")
flags.DEFINE_bool("multiply_by_sqrt2", None, "Whether the ReLU is times sqrt(2), in place of the model's own.")
shared_flags.define_n_max()
shared_flags.define_n_gpus()
flags.DEFINE_enum("engine", "auto", ENGINES, "How entries are computed; auto: fused (on the CPU) where it can.")
flags.DEFINE_integer("n_threads", None, "Threads of the fused engine; by default one a core.", lower_bound=1)
flags.DEFINE_enum("float_type", "float32", ["float32", "float64"], "Precision of the kernel's entries.")
flags.DEFINE_string("shard", "1/1", "i/n, of a job array on a shared file system: which parts to try first.")
flags.DEFINE_string("scheduler", None, "Address of a Dask scheduler, whose workers compute in place of this machine.")
flags.DEFINE_float("claim_timeout", TIMEOUT, "Seconds without a sign of life after which another's part is taken over.")
flags.DEFINE_bool("status", False, "Only say what is done, missing and at work (--path, and --model or --run_name).")
flags.DEFINE_bool("verify", False, "Check every byte of the parts that are there, not only their structure.")


def main() -> None:
    """Parse the flags, say what will be done, do it."""
    run = shared_flags.run_directory()
    if FLAGS.status:
        print(status(run, FLAGS.verify))
        return
    shard = _shard(FLAGS.shard)
    overrides = {name: FLAGS[name].value for name in ("var_weight", "var_bias", "multiply_by_sqrt2")}
    given = [f"--{name}" for name, value in overrides.items() if value is not None]
    if given and FLAGS.run_name is None:
        raise UserError(f"{' and '.join(given)} make another kernel than {FLAGS.model}'s: give it a --run_name.")
    data = datasets.load(FLAGS.dataset, data_dir=FLAGS.data_dir, **shared_flags.sizes())

    with cli.without_startup_messages():
        from cnn_gp.engines.tensorflow import configure

        # Several GPUs get a process each, and this one only hands out the work.
        n_gpus_seen = configure(FLAGS.n_gpus, use=FLAGS.n_gpus <= 1 and FLAGS.scheduler is None)
        model_arguments = {
            "model": FLAGS.model,
            "input_shape": data.image_shape,
            **{name: FLAGS[name].value for name in ("seed", "allow_skip", "skip_rule", "depth", "n_blocks")},
            **overrides,
        }
        kernel = build_kernel(**model_arguments)
    choice = choose_engine(FLAGS.engine, kernel, n_gpus=FLAGS.n_gpus, float_type=FLAGS.float_type)
    description = describe_run(kernel, FLAGS.model, data, FLAGS.n_max, FLAGS.float_type)
    tiling = description.tiling
    run.begin(description, data)
    missing, unusable = run.missing_parts(FLAGS.verify)
    parts = tiling.parts()
    print(
        f"{run.name} on {data.name}: {data.sizes[0]:,} training, {data.sizes[1]:,} validation and {data.sizes[2]:,} "
        f"test images; {tiling.n_tiles:,} tiles, {tiling.entries:,} kernel entries, "
        f"{tiling.n_bytes(int(FLAGS.float_type[-2:]) // 8) / 1e6:,.1f} MB in {run.folder}."
    )
    for name, reason in unusable.items():
        print(f"{name} is computed again: {reason}.")
    if len(missing) < len(parts):
        print(f"{len(parts) - len(missing)} of {len(parts)} parts are there already.")
    if FLAGS.n_gpus == 0 and n_gpus_seen:
        print(f"TensorFlow sees {n_gpus_seen} GPUs, but the CPU is used: give --n_gpus={n_gpus_seen} to use them.")
    for name in unusable:
        run.discard(name)
    if choice.program is not None and FLAGS.scheduler is None:
        from cnn_gp.engines.fused.engine import is_compiled

        if not is_compiled():
            print("The fused engine is compiled, once on this machine: it takes about 20 s.")
    print(f"Engine: {choice.name}." + (f" {choice.reason}." if choice.reason else ""), flush=True)
    engine = functools.partial(
        worker_engine, choice=choice, model_arguments=model_arguments, n_max=FLAGS.n_max, n_threads=FLAGS.n_threads
    )
    job = Job(str(Path(FLAGS.path).absolute()), run.name, engine, description.fingerprint, FLAGS.claim_timeout)
    devices = [f"gpu:{i}" for i in range(FLAGS.n_gpus)] or ["cpu"]
    cluster = None
    if FLAGS.scheduler is not None:
        client, n_workers = connect(FLAGS.scheduler, run.folder)
        cluster = client.get_executor(), n_workers
    if compute_run(job, devices, shard=shard, cluster=cluster):
        print(f"{run.name} is complete: {run.view_path}")
    else:
        print(f"Shard {FLAGS.shard} of {run.name} is done; others are at work on the rest.")


def _shard(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise UserError(f"--shard is {text!r}; expected i/n with i from 1 to n: --shard=1/4 to --shard=4/4.")
    return int(i), int(n)


if __name__ == "__main__":
    cli.run(main)
