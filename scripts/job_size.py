"""
How large a job is, before it starts: kernel entries, disk and time for each run and in all.

    python scripts/job_size.py --dataset=digits --runs=convnet_gp,resnet_gp,1,2,3

The time is an estimate: that of a small network, measured here in a few seconds, times the number of covariances.
"""

import time

import numpy as np
from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.data import datasets
from cnn_gp.errors import ShrunkMapError, UserError
from cnn_gp.kernels.architectures import MODELS, build_kernel, run_name
from cnn_gp.progress import duration
from cnn_gp.store.tiling import Tiling

FLAGS = flags.FLAGS
shared_flags.define_data_set()
shared_flags.define_sizes()
flags.DEFINE_list("runs", None, "Models and seeds of the random search, separated by commas.", required=True)
shared_flags.define_n_max()
shared_flags.define_devices()


def main() -> None:
    """Parse the flags, measure, print the table."""
    data = datasets.load(FLAGS.dataset, data_dir=FLAGS.data_dir, **shared_flags.sizes())
    print(*data.in_words(), sep="\n", flush=True)
    tiling = Tiling(*data.sizes, FLAGS.n_max)
    gigabytes = tiling.n_bytes(4) / 1e9
    with cli.without_startup_messages():
        from cnn_gp.engines.tensorflow import configure

        configure(FLAGS.n_gpus)
        per_covariance = _seconds_per_covariance(data, FLAGS.n_gpus)
    print(f"{data.name}: {tiling.entries:,} kernel entries and {gigabytes:.3f} GB for each run")
    seconds = 0.0
    n_runs = 0
    for item in FLAGS.runs:
        model, seed = _model_and_seed(item)
        name = run_name(model, seed)
        try:
            kernel = build_kernel(model, data.image_shape, seed=seed)
        except ShrunkMapError:
            print(f"  {name:16} shrinks below one pixel: no kernel")
            continue
        n_covariances = kernel.network.n_covariances(tuple(data.image_shape[1:]))
        estimate = per_covariance * n_covariances * tiling.entries
        print(f"  {name:16} {n_covariances:7,} covariances per entry, about {duration(estimate)}")
        seconds += estimate
        n_runs += 1
    print(
        f"in all {n_runs} runs, {n_runs * tiling.entries:,} kernel entries, {n_runs * gigabytes:.3f} GB if all tiles "
        f"are kept, about {duration(seconds)} of kernel time and some seconds a run for compiling"
    )


def _model_and_seed(item: str) -> tuple[str, int]:
    if item.isdecimal():
        return "random", int(item)
    if item not in MODELS or item == "random":
        raise UserError(f"--runs has {item!r}; expected one of {', '.join(MODELS[:-1])}, or a seed's number.")
    return item, 0


def _seconds_per_covariance(data: datasets.Dataset, n_gpus: int) -> float:
    """What one covariance of one layer costs on this machine, on images of this size, in a network of six layers."""
    from cnn_gp.engines.choice import make_engine
    from cnn_gp.engines.tensorflow import default_batch_size
    from cnn_gp.kernels.deep import DeepKernel
    from cnn_gp.kernels.layers import ExReLU

    kernel = DeepKernel(data.image_shape, [3] * 6, ExReLU())
    batch_size = FLAGS.batch_size or default_batch_size(n_gpus, FLAGS.n_max)
    engine = make_engine("auto", kernel, n_gpus=n_gpus, batch_size=batch_size)
    # On the CPU enough for every core to have some.
    X = np.resize(data.X.astype(np.float32), (batch_size if n_gpus else 256, data.X.shape[1]))
    engine.matrix(X, X)
    start = time.perf_counter()
    engine.matrix(X, X)
    elapsed = time.perf_counter() - start
    return elapsed / (len(X) ** 2 * kernel.network.n_covariances(tuple(data.image_shape[1:])))


if __name__ == "__main__":
    cli.run(main)
