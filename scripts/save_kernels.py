"""
Stage 1: compute a kernel's matrices over a data set, tile by tile, into a working directory.

    python scripts/save_kernels.py --dataset=digits --model=resnet_gp --path=runs

Started again with the same flags it does only what is missing. Any number of these programs can work in one directory.
"""

import functools
from typing import Any

from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.compute.claims import TIMEOUT
from cnn_gp.compute.compute_kernels import FLOAT_TYPES, Request, compute_kernels
from cnn_gp.compute.status import status
from cnn_gp.engines.choice import ENGINES
from cnn_gp.errors import UserError

FLAGS = flags.FLAGS
shared_flags.define_run()
shared_flags.define_data_set()
shared_flags.define_sizes()
shared_flags.define_flip()
shared_flags.define_n_max()
shared_flags.define_devices()
# With any of these seven, a run needs a --run_name of its own.
flags.DEFINE_bool("allow_skip", None, "With --model=random: allow skip connections.")
flags.DEFINE_enum("skip_rule", "published", ["published", "released"], "With --model=random: which seeds get skips.")
flags.DEFINE_integer("depth", 32, "With --model=resnet_gp: layers, 2 * n_blocks * n + 2.")
flags.DEFINE_integer("n_blocks", 3, "With --model=resnet_gp: blocks, each but the first of stride 2.")
flags.DEFINE_float("var_weight", None, "Weight variance in place of the model's own.")
flags.DEFINE_float("var_bias", None, "Bias variance in place of the model's own.")
flags.DEFINE_bool("multiply_by_sqrt2", None, "Whether the ReLU is times sqrt(2).")
flags.DEFINE_float("zca", None, "Whiten the images, with this regularization relative to the mean eigenvalue: 1e-2.")
flags.DEFINE_enum("engine", "auto", ENGINES, "How entries are computed; auto: fused (on the CPU) where it can.")
flags.DEFINE_integer("n_threads", None, "Threads of the fused engine; by default one a core.", lower_bound=1)
flags.DEFINE_enum("float_type", "float32", FLOAT_TYPES, "Precision of the kernel's entries.")
flags.DEFINE_string("shard", "1/1", "i/n, of a job array on a shared file system: which parts to try first.")
flags.DEFINE_string("scheduler", None, "Address of a Dask scheduler, whose workers compute in place of this machine.")
flags.DEFINE_float(
    "claim_timeout", TIMEOUT, "Seconds, at least 20, without a heartbeat after which another's part is taken over."
)
flags.DEFINE_bool(
    "status",
    False,
    "Print which parts are done, missing, damaged or being computed (--path, and --model or --run_name).",
)
flags.DEFINE_bool("verify", False, "Check every byte of the parts, images and labels that are there, and of the view.")

#: The flags that are further arguments of cnn_gp.build_kernel.
ARGUMENTS = "allow_skip skip_rule depth n_blocks var_weight var_bias multiply_by_sqrt2".split()

#: The flags that are the request's fields of the same name.
REQUEST_FLAGS = (
    "path model seed kernel run_name dataset data_dir zca flip n_max float_type engine n_gpus batch_size n_threads "
    "scheduler claim_timeout verify"
).split()


def main() -> None:
    """Parse the flags and compute what is missing, or say what is."""
    if FLAGS.status:
        print(status(shared_flags.run_directory(), FLAGS.verify))
        return
    fields: dict[str, Any] = {name: FLAGS[name].value for name in REQUEST_FLAGS}
    kernel_arguments = {name: FLAGS[name].value for name in ARGUMENTS}
    fields |= {**shared_flags.sizes(), "pool": shared_flags.pool(), "shard": _shard(FLAGS.shard)}
    request = Request(**fields, kernel_arguments=kernel_arguments)
    compute_kernels(request, functools.partial(print, flush=True))


def _shard(text: str) -> tuple[int, int]:
    i, n = map(shared_flags.whole_number, text.partition("/")[::2])
    if i is None or n is None:
        raise UserError(f"--shard is {text!r}; expected i/n with i from 1 to n: --shard=1/4 to --shard=4/4.")
    return i, n


if __name__ == "__main__":
    cli.run(main)
