"""
Stage 1: compute a kernel's matrices over a data set, block by block, into a working directory.

    python scripts/save_kernels.py --dataset=digits --model=resnet_gp --path=runs

Started again with the same flags it does only what is missing.
"""

from absl import flags

from cnn_gp import cli, datasets
from cnn_gp.architectures import MODELS, build_kernel, run_name
from cnn_gp.compute import compute_run, describe_run
from cnn_gp.engines import ENGINES, make_engine
from cnn_gp.errors import UserError
from cnn_gp.store import RunDirectory

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "digits", f"One of {', '.join(datasets.DATASETS)}, or a file FILE.npz.")
flags.DEFINE_string("data_dir", None, "Folder of the data set's files; without it Keras's cache, or its download.")
flags.DEFINE_enum("model", "resnet_gp", MODELS, "The kernel; 'random' is the random search's network of --seed.")
flags.DEFINE_string("path", None, "The working directory.", required=True)
flags.DEFINE_string("run_name", None, "The run's name; by default the model's, or seed_NN.")
flags.DEFINE_integer("seed", 53, "With --model=random: the seed of the draw (the paper: 1 to 60 and 1234).")
flags.DEFINE_bool("allow_skip", None, "With --model=random: allow skip connections; by default for seeds 36 to 60.")
flags.DEFINE_enum("skip_rule", "published", ["published", "released"], "With --model=random: who gets a skip.")
flags.DEFINE_integer("depth", 32, "With --model=resnet_gp: layers, 2 * n_blocks * n + 2.")
flags.DEFINE_integer("n_blocks", 3, "With --model=resnet_gp: blocks, each but the first of stride 2.")
flags.DEFINE_float("var_weight", None, "Weight variance in place of the model's own; needs --run_name.")
flags.DEFINE_float("var_bias", None, "Bias variance in place of the model's own; needs --run_name.")
flags.DEFINE_bool("multiply_by_sqrt2", None, "Whether the ReLU is times sqrt(2), in place of the model's own.")
flags.DEFINE_integer("N_train", None, "Training images; by default the data set's own number.")
flags.DEFINE_integer("N_vali", None, "Validation images.")
flags.DEFINE_integer("N_test", None, "Test images.")
flags.DEFINE_integer("n_max", 200, "Images on a side of a stored block, and of a block given to a GPU.")
flags.DEFINE_integer("n_gpus", 0, "GPUs to use; 0 means the CPU.")
flags.DEFINE_enum("engine", "auto", ENGINES, "How entries are computed.")
flags.DEFINE_enum("float_type", "float32", ["float32", "float64"], "Precision of the kernel's entries.")


def main() -> None:
    """Parse the flags, say what will be done, do it."""
    overrides = {name: FLAGS[name].value for name in ("var_weight", "var_bias", "multiply_by_sqrt2")}
    given = [f"--{name}" for name, value in overrides.items() if value is not None]
    if given and FLAGS.run_name is None:
        raise UserError(f"{' and '.join(given)} make another kernel than {FLAGS.model}'s: give it a --run_name.")
    sizes = {"N_train": FLAGS.N_train, "N_vali": FLAGS.N_vali, "N_test": FLAGS.N_test}
    data = datasets.load(FLAGS.dataset, data_dir=FLAGS.data_dir, **sizes)

    with cli.without_startup_messages():
        from cnn_gp.engines.tensorflow import configure

        n_gpus_seen = configure(FLAGS.n_gpus)
    kernel = build_kernel(
        FLAGS.model,
        data.image_shape,
        seed=FLAGS.seed,
        allow_skip=FLAGS.allow_skip,
        skip_rule=FLAGS.skip_rule,
        depth=FLAGS.depth,
        n_blocks=FLAGS.n_blocks,
        **overrides,
    )
    run = RunDirectory(FLAGS.path, FLAGS.run_name or run_name(FLAGS.model, FLAGS.seed))
    description = describe_run(kernel, FLAGS.model, data, FLAGS.n_max, FLAGS.float_type)
    tiling = description.tiling
    run.begin(description, {"Y": data.Y, "Yv": data.Yv, "Yt": data.Yt})
    missing, unusable = run.missing_parts()
    parts = tiling.parts()
    print(
        f"{run.name} on {data.name}: {data.sizes[0]:,} training, {data.sizes[1]:,} validation and {data.sizes[2]:,} "
        f"test images; {tiling.n_blocks:,} blocks, {tiling.entries:,} kernel entries, "
        f"{tiling.n_bytes(int(FLAGS.float_type[-2:]) // 8) / 1e6:,.1f} MB in {run.folder}."
    )
    for name, reason in unusable.items():
        print(f"{name} is computed again: {reason}.")
    if len(missing) < len(parts):
        print(f"{len(parts) - len(missing)} of {len(parts)} parts are there already.")
    if FLAGS.n_gpus == 0 and n_gpus_seen:
        print(f"TensorFlow sees {n_gpus_seen} GPUs, but the CPU is used: give --n_gpus={n_gpus_seen} to use them.")
    compute_run(run, make_engine(FLAGS.engine, kernel, n_gpus=FLAGS.n_gpus, n_max=FLAGS.n_max), data)
    print(f"{run.name} is complete: {run.view_path}")


if __name__ == "__main__":
    cli.run(main)
