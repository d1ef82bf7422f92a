"""
How large a job is, before it starts: kernel entries, disk and time for each run and in all.

    python scripts/job_size.py --dataset=digits --runs=convnet_gp,resnet_gp,1,2,3

The time is an estimate, from some of the run's own entries in the fused engine, from a small network's in the other.
"""

import time
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.data import datasets
from cnn_gp.data.preprocessing import with_flips_of_training
from cnn_gp.engines.choice import choose_engine, make_engine
from cnn_gp.errors import ShrunkMapError
from cnn_gp.kernels.architectures import build_kernel, run_name
from cnn_gp.progress import duration
from cnn_gp.store.tiling import Tiling

FLAGS = flags.FLAGS
shared_flags.define_data_set()
shared_flags.define_sizes()
shared_flags.define_flip()
shared_flags.define_runs()
shared_flags.define_n_max()
shared_flags.define_devices()

if TYPE_CHECKING:
    from cnn_gp.kernels.network_kernel import NetworkKernel


def main() -> None:
    """Parse the flags, measure, print the table."""
    runs = shared_flags.runs()
    data = datasets.load(FLAGS.dataset, data_dir=FLAGS.data_dir, **shared_flags.sizes())
    print(*data.in_words(), sep="\n", flush=True)
    if FLAGS.flip:
        data = with_flips_of_training(data)
    tiling = Tiling(*data.sizes, FLAGS.n_max)
    gigabytes = tiling.n_bytes(4) / 1e9
    with cli.without_startup_messages():
        from cnn_gp.engines.tensorflow import configure

        configure(FLAGS.n_gpus)
    print(f"{data.name}: {tiling.n_entries:,} kernel entries and {gigabytes:.3f} GB for each run", flush=True)
    seconds = 0.0
    n_runs = 0
    for model, seed, which, pool in runs:
        name = run_name(model, seed, which, pool)
        try:
            kernel = build_kernel(model, data.image_shape, seed=seed, kernel=which, pool=pool)
        except ShrunkMapError:
            print(f"  {name:16} shrinks below one pixel: no kernel")
            continue
        with cli.without_startup_messages():
            estimate = _seconds_per_entry(kernel, data) * tiling.n_entries
        of_pools = f" of {kernel.n_displacements:,} displacements" if kernel.n_displacements > 1 else ""
        print(
            f"  {name:16} {kernel.n_covariances:7,} covariances{of_pools} per entry, about {duration(estimate)}",
            flush=True,
        )
        seconds += estimate
        n_runs += 1
    print(
        f"in all {n_runs} runs, {n_runs * tiling.n_entries:,} kernel entries, {n_runs * gigabytes:.3f} GB if all tiles "
        f"are kept, about {duration(seconds)} of kernel time and some seconds a run for compiling"
    )


def _seconds_per_entry(kernel: "NetworkKernel", data: datasets.Dataset) -> float:
    """What an entry costs on this machine, by the engine that computes the kernel."""
    choice = choose_engine("auto", kernel, n_gpus=FLAGS.n_gpus)
    if choice.program is not None:
        from cnn_gp.engines.fused.engine import FusedEngine
        from cnn_gp.engines.fused.speed import seconds_per_entry

        return seconds_per_entry(FusedEngine(choice.program), data.X.astype(np.float32))
    kind = type(kernel).__name__ == "NTKKernel", kernel.n_displacements > 1
    if kind not in _MEASURED:
        _MEASURED[kind] = _seconds_per_covariance(*kind, data)
    return _MEASURED[kind] * kernel.n_covariances


#: Of the tensorflow engine, for the neural tangent kernel or the other, with pooling or without.
_MEASURED: dict[tuple[bool, bool], float] = {}


def _seconds_per_covariance(ntk: bool, pooled: bool, data: datasets.Dataset) -> float:
    """In the tensorflow engine, which takes long to compile: of a network of six layers, and a small pool."""
    from cnn_gp.engines.tensorflow import default_batch_size
    from cnn_gp.kernels.composition import Sequential
    from cnn_gp.kernels.layers import Conv, Dense
    from cnn_gp.kernels.nngp import NNGPKernel
    from cnn_gp.kernels.nonlinearities import ExReLU
    from cnn_gp.kernels.ntk import NTKKernel
    from cnn_gp.kernels.pooling import AvgPool

    pool = [AvgPool(2, 1, "SAME")] if pooled and len(data.image_shape) > 1 else []
    network = Sequential(*(layer for _ in range(6) for layer in (Conv(3), ExReLU())), *pool, Dense())
    kernel = (NTKKernel if ntk else NNGPKernel)(network, data.image_shape)
    batch_size = FLAGS.batch_size or default_batch_size(kernel, FLAGS.n_gpus, FLAGS.n_max)
    engine = make_engine("tensorflow", kernel, n_gpus=FLAGS.n_gpus, batch_size=batch_size)
    # On the CPU enough for every core to have some.
    n_images = batch_size if FLAGS.n_gpus else 64 if pooled else 256
    X = np.resize(data.X.astype(np.float32), (n_images, data.X.shape[1]))
    engine.matrix(X, X)
    start = time.perf_counter()
    engine.matrix(X, X)
    return (time.perf_counter() - start) / (n_images**2 * kernel.n_covariances)


if __name__ == "__main__":
    cli.run(main)
