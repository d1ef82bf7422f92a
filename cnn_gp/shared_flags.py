"""Flags that several scripts have, each defined once; a script defines what it has alone."""

from itertools import product
from typing import Any

from absl import flags

from .cli import say_interrupts_in_one_line
from .data.datasets import DATASETS
from .errors import UserError
from .kernels.architectures import KERNELS, MODELS, Pool, parse_pool, run_name
from .store.run_directory import RunDirectory
from .store.tiling import DEFAULT_N_MAX

#: Of a whole number among a flag's words: Python refuses to read one of more than 4,300.
_MOST_DIGITS = 18

# Scripts import this module first.
say_interrupts_in_one_line()

# The script that calls a function of this module has its flags as key flags: --help lists them.
flags.disclaim_key_flags()


def define_path() -> None:
    """--path"""
    flags.DEFINE_string("path", None, "The working directory.", required=True)


def define_run() -> None:
    """--path, and the name of a run in it: --model, --seed, --kernel and --pool, or --run_name."""
    define_path()
    flags.DEFINE_enum("model", "resnet_gp", MODELS, "The kernel; 'random' is the random search's network of --seed.")
    flags.DEFINE_integer("seed", 53, "With --model=random: the seed of the draw (the paper: 1 to 60 and 1234).")
    define_kernel()
    flags.DEFINE_string(
        "run_name", None, "The run's name; by default the model's, or seed_NN, followed by the pool and the kernel."
    )


def define_kernel() -> None:
    """--kernel and --pool"""
    flags.DEFINE_enum("kernel", "nngp", KERNELS, "The Gaussian process's kernel, or the neural tangent kernel.")
    define_pool()


def define_pool() -> None:
    """--pool"""
    flags.DEFINE_string(
        "pool",
        "none",
        "Average pool before the first dense layer: none, global, or how many positions of the feature map on a side "
        "(stride 1, SAME).",
    )


def define_runs() -> None:
    """--runs, and lists as --kernel and --pool: each network with each pool and kernel."""
    flags.DEFINE_list("runs", None, "Models and seeds of the random search, separated by commas.", required=True)
    flags.DEFINE_list("kernel", ["nngp"], f"Some of {', '.join(KERNELS)}.")
    flags.DEFINE_list(
        "pool",
        ["none"],
        "Pools before the first dense layer: none, global, or how many positions of the feature map on a side.",
    )


def runs() -> list[tuple[str, int, str, Pool | None]]:
    """
    What the flags of :func:`define_runs` ask for: each run's model, seed, kernel and pool.

    :raises UserError: where a model, kernel or pool is unknown.
    """
    networks = [_model_and_seed(item) for item in flags.FLAGS.runs]
    for kernel in flags.FLAGS.kernel:
        if kernel not in KERNELS:
            raise UserError(f"--kernel has {kernel!r}; expected some of {', '.join(KERNELS)}.")
    pools = [parse_pool(text) for text in flags.FLAGS.pool]
    return [(*network, kernel, pool) for network, pool, kernel in product(networks, pools, flags.FLAGS.kernel)]


def _model_and_seed(item: str) -> tuple[str, int]:
    seed = whole_number(item)
    if seed is not None:
        return "random", seed
    if item not in MODELS or item == "random":
        raise UserError(f"--runs has {item!r}; expected one of {', '.join(MODELS[:-1])}, or a seed's number.")
    return item, 0


def whole_number(text: str) -> int | None:
    """The number that a flag's text is; None where it isn't one, or has more digits than anything here can use."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def pool() -> Pool | None:
    """The pool that the flag of :func:`define_pool` asks for. :raises UserError: where it isn't one."""
    return parse_pool(flags.FLAGS.pool)


def run_directory() -> RunDirectory:
    """The run that the flags of :func:`define_run` name."""
    FLAGS = flags.FLAGS
    return RunDirectory(FLAGS.path, FLAGS.run_name or run_name(FLAGS.model, FLAGS.seed, FLAGS.kernel, pool()))


def define_csv_dir() -> None:
    """--csv_dir"""
    flags.DEFINE_string("csv_dir", "results", "Folder of the results, in the working directory.")


def define_data_set() -> None:
    """--dataset and --data_dir"""
    flags.DEFINE_string("dataset", "digits", f"One of {', '.join(DATASETS)}, or a file FILE.npz.")
    flags.DEFINE_string("data_dir", None, "Folder of the data set's files; without it Keras's cache, or its download.")


def define_sizes() -> None:
    """--N_train, --N_vali and --N_test of the data set."""
    flags.DEFINE_integer("N_train", None, "Training images; by default the data set's own number.")
    flags.DEFINE_integer("N_vali", None, "Validation images; by default the data set's own number.")
    flags.DEFINE_integer("N_test", None, "Test images; by default the data set's own number.")


def define_flip() -> None:
    """--flip"""
    flags.DEFINE_bool("flip", False, "Train on the mirror images of the training images too: twice as many.")


def sizes() -> dict[str, Any]:
    """The sizes that the flags of :func:`define_sizes` ask for; None: the data set's own."""
    return {name: flags.FLAGS[name].value for name in ("N_train", "N_vali", "N_test")}


def define_n_max() -> None:
    """--n_max"""
    flags.DEFINE_integer("n_max", DEFAULT_N_MAX, "Images on a side of a stored tile.")


def define_devices() -> None:
    """--n_gpus, and --batch_size, which decides how much memory a device needs and not which run it is."""
    flags.DEFINE_integer("n_gpus", 0, "GPUs to use; 0 means the CPU.", lower_bound=0)
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images on a side of the batch that the tensorflow engine computes at a time; less takes less memory. By "
        "default 200 on a GPU, or n_max if that is less, and 16 on the CPU; less where pooling takes more memory.",
        lower_bound=1,
    )
