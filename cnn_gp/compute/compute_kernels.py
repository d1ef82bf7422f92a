"""Stage 1 as a whole: a kernel's matrices over a data set, from a request to a complete run on disk."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..cli import without_startup_messages
from ..cluster import connect
from ..data import datasets
from ..data.datasets import Dataset
from ..engines.choice import ENGINES, Choice, choose_engine, engine_on_device, work_per_entry
from ..errors import UserError
from ..kernels.architectures import MODELS, Pool, build_kernel, checked_architecture, run_name
from ..progress import duration
from ..store.description import Description
from ..store.run_directory import RunDirectory
from ..store.tiling import DEFAULT_N_MAX
from .claims import HEARTBEAT, TIMEOUT
from .scheduler import compute_run
from .status import ENGINES_DIFFER, in_words, parts_by_engine
from .worker import Job

if TYPE_CHECKING:
    from ..kernels.network_kernel import NetworkKernel

Say = Callable[[str], None]

FLOAT_TYPES = ("float32", "float64")

#: The arguments that a request's kernel_arguments can have, with the values that a model's name stands for.
_DEFAULTS = {
    name: argument.default
    for name, argument in inspect.signature(build_kernel).parameters.items()
    if name not in ("model", "input_shape", "kernel", "pool", "seed")
}

#: Dealing the parts to more would take long.
_MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Request:
    """What is asked of stage 1: the kernel, the data, where the run lies, and what computes it."""

    path: str | Path
    """The working directory."""
    model: str = "resnet_gp"
    seed: int = 53
    """Of the model "random"."""
    kernel: str = "nngp"
    """"nngp" or "ntk"."""
    pool: Pool | None = None
    """Positions on a side of an average pool before the first dense layer, or "global"."""
    kernel_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of :func:`cnn_gp.build_kernel`, from ``allow_skip`` on."""
    run_name: str | None = None
    """By default the model's, or ``seed_NN``, followed by the pool and the kernel."""
    dataset: str = "digits"
    data_dir: str | Path | None = None
    N_train: int | None = None
    """Images; by default the data set's own number, here and below."""
    N_vali: int | None = None
    N_test: int | None = None
    zca: float | None = None
    """The images are whitened, by :class:`cnn_gp.data.preprocessing.ZCA` of this regularization."""
    flip: bool = False
    """Each training image is followed by its mirror image: N_train becomes twice as many."""
    n_max: int = DEFAULT_N_MAX
    """Images on a side of a tile."""
    float_type: Literal["float32", "float64"] = "float32"
    engine: str = "auto"
    n_gpus: int = 0
    batch_size: int | None = None
    """Images on a side of the tensorflow engine's batch; by default as many as suit the device."""
    n_threads: int | None = None
    """Of the fused engine; by default one a core."""
    shard: tuple[int, int] = (1, 1)
    """(i, n): try the i-th of n shards first."""
    scheduler: str | None = None
    """Address of a Dask scheduler, whose workers compute in place of this machine."""
    claim_timeout: float = TIMEOUT
    verify: bool = False
    """Read every byte of the parts that are there, and compare images and labels with the run's description."""

    def __post_init__(self) -> None:
        """:raises UserError: where a value can't be used, or a run of a changed kernel has an unchanged one's name."""
        for name, known in (("engine", ENGINES), ("float_type", FLOAT_TYPES)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}.")
        for name, least in (("n_max", 1), ("n_gpus", 0), ("batch_size", 1), ("n_threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}; expected a whole number of at least {least}.")
        if self.zca is not None and not 0 < self.zca < float("inf"):
            raise UserError(f"--zca is {self.zca}; expected a finite number above 0, such as 1e-2.")
        i, n = self.shard
        if not 1 <= i <= n <= _MOST_SHARDS:
            raise UserError(
                f"--shard is {i}/{n}; expected i/n with i from 1 to n, at most {_MOST_SHARDS:,}: --shard=1/4 to "
                "--shard=4/4."
            )
        if not 2 * HEARTBEAT <= self.claim_timeout < float("inf"):
            raise UserError(
                f"--claim_timeout is {self.claim_timeout}; expected seconds, at least {2 * HEARTBEAT:g}: a program at "
                f"work gives a heartbeat every {HEARTBEAT:g} s."
            )
        unknown = [name for name in self.kernel_arguments if name not in _DEFAULTS]
        if unknown:
            raise UserError(f"kernel_arguments has {unknown[0]!r}; expected some of {', '.join(_DEFAULTS)}.")
        given = [name for name, value in self.kernel_arguments.items() if value != _DEFAULTS[name]]
        checked_architecture(self.model, kernel=self.kernel, seed=self.seed, **self.kernel_arguments)
        if given and self.run_name in (None, self._models_name(), *MODELS):
            named = " and ".join(f"--{name}" for name in given)
            makes = "makes" if len(given) == 1 else "make"
            raise UserError(f"{named} {makes} another kernel than {self.model}'s: give it a --run_name of its own.")

    def run_directory(self) -> RunDirectory:
        """Where the run lies."""
        return RunDirectory(self.path, self.run_name or self._models_name())

    def _models_name(self) -> str:
        return run_name(self.model, self.seed, self.kernel, self.pool)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """For the run's description."""
        return ({"flip": True} if self.flip else {}) | ({} if self.zca is None else {"zca": self.zca})

    def build_kernel(self, image_shape: Sequence[int], *, with_pool: bool = True) -> "NetworkKernel":
        """The kernel for images of a shape; without the pool that is asked for, to compare."""
        pool = self.pool if with_pool else None
        arguments = dict(self.kernel_arguments, seed=self.seed, kernel=self.kernel, pool=pool)
        return build_kernel(self.model, image_shape, **arguments)


def compute_kernels(request: Request, say: Say = print) -> RunDirectory:
    """
    Begin a run, or go on with it: compute what is missing, and write the view if nothing is missing any longer.

    What can be wrong is checked in the order of what it costs: the request, the working directory, the data, and only
    then TensorFlow is imported, to build the kernel.

    :param say: called with lines of text on the way.
    :return: the run; ``run.view_path`` is there if it is complete.
    :raises UserError: where the request can't be fulfilled; nothing is written before the kernel is built.
    """
    run = request.run_directory()
    run.check_writable()
    data = _load(request, say)
    with without_startup_messages():
        from ..engines.tensorflow import configure, default_batch_size

        # Several GPUs get a process each, and this one only hands out the work.
        configure(request.n_gpus, use=request.n_gpus <= 1 and request.scheduler is None)
        kernel = request.build_kernel(data.image_shape)
    choice = choose_engine(request.engine, kernel, n_gpus=request.n_gpus, float_type=request.float_type)
    description = Description.of(
        data,
        model=request.model,
        kernel=kernel.describe(),
        n_max=request.n_max,
        float_type=request.float_type,
        preprocessing=request.preprocessing,
    )
    if choice.name == "tensorflow" and request.batch_size is None and request.scheduler is None:
        # Before anything is written, for its error.
        default_batch_size(kernel, request.n_gpus, itemsize=np.dtype(request.float_type).itemsize)
    run.begin(description, data)
    if kernel.n_displacements > 1:
        say(_cost_of_pools(request, kernel, choice, data.image_shape))
    _prepare(run, request, data, choice, kernel.n_covariances, say)
    make_engine = functools.partial(
        engine_on_device,
        choice=choice,
        kernel=description.kernel,
        n_max=request.n_max,
        batch_size=request.batch_size,
        n_threads=request.n_threads,
        float_type=request.float_type,
    )
    workdir = str(run.workdir.absolute())
    job = Job(workdir, run.name, make_engine, run.id, request.claim_timeout)
    devices = [f"gpu:{i}" for i in range(request.n_gpus)] or ["cpu"]
    address = request.scheduler
    with contextlib.nullcontext() if address is None else connect(address, run.folder) as cluster:
        is_complete = compute_run(job, devices, shard=request.shard, cluster=cluster, say=say)
    if is_complete:
        say(f"{run.name} is complete: {run.view_path}")
    else:
        say(f"Shard {request.shard[0]}/{request.shard[1]} of {run.name} is done; others are at work on the rest.")
    return run


def _load(request: Request, say: Say) -> Dataset:
    """The images, with the mirror images that are asked for; the run whitens them when it stores them."""
    data = datasets.load(
        request.dataset,
        data_dir=request.data_dir,
        N_train=request.N_train,
        N_vali=request.N_vali,
        N_test=request.N_test,
    )
    for line in data.in_words(request.float_type):
        say(line)
    if request.flip:
        from ..data.preprocessing import with_flips_of_training

        data = with_flips_of_training(data)
        say(f"{data.name}: with the mirror image of each, {data.sizes[0]:,} training images.")
    if request.zca is not None:
        say(f"{data.name}: whitened, as the training images are, with regularization {request.zca:g}.")
    return data


def _cost_of_pools(request: Request, kernel: "NetworkKernel", choice: Choice, image_shape: Sequence[int]) -> str:
    """What average pooling costs, in words."""
    cost = f"Average pooling needs {kernel.n_displacements:,} displacements between the images' pixels"
    if request.pool is None:
        return f"{cost}."
    plain = request.build_kernel(image_shape, with_pool=False)
    of_plain = choose_engine(request.engine, plain, n_gpus=request.n_gpus, float_type=request.float_type)
    ratio = work_per_entry(choice, kernel) / work_per_entry(of_plain, plain)
    return f"{cost}: an entry takes about {ratio:,.0f} times as long as without --pool."


def _prepare(run: RunDirectory, request: Request, data: Dataset, choice: Choice, n_covariances: int, say: Say) -> None:
    """Say how large the job is, what is there already and what will compute the rest; delete damaged parts."""
    description = run.description()
    tiling, parts = description.tiling, description.tiling.parts()
    missing, unusable = run.parts.missing(request.verify)
    if request.verify:
        run.check_data()
    say(
        f"{run.name} on {data.name}: {data.sizes[0]:,} training, {data.sizes[1]:,} validation and {data.sizes[2]:,} "
        f"test images; {tiling.n_tiles:,} tiles, {tiling.n_entries:,} kernel entries, "
        f"{tiling.n_bytes(np.dtype(request.float_type).itemsize) / 1e6:,.1f} MB in {run.folder}."
    )
    say(f"A kernel entry takes {n_covariances:,} covariances, the run {n_covariances * tiling.n_entries:,}.")
    for name, reason in unusable.items():
        say(f"{name} is computed again: {reason}.")
        run.parts.discard(next(part for part in missing if part.name == name))
    if len(missing) < len(parts):
        say(f"{len(parts) - len(missing)} of {len(parts)} parts are there already.")
    from ..engines.tensorflow import n_gpus_seen

    if request.n_gpus == 0 and n_gpus_seen():
        say(f"TensorFlow sees {n_gpus_seen()} GPUs, but the CPU is used: give --n_gpus={n_gpus_seen()} to use them.")
    if choice.program is not None and request.scheduler is None:
        from ..engines.fused.engine import FusedEngine, is_compiled
        from ..engines.fused.speed import seconds_per_entry

        if not is_compiled():
            say("The fused engine is compiled, once on this machine: it takes about 40 s.")
        if missing:
            engine = FusedEngine(choice.program, n_threads=request.n_threads)
            seconds = seconds_per_entry(engine, data.X.astype(np.float32)) * sum(part.n_entries for part in missing)
            say(f"What is missing takes about {duration(seconds)} on this machine, by a measurement of this moment.")
    say(f"Engine: {choice.name}." + (f" {choice.reason}." if choice.reason else ""))
    names = {part.name for part in missing}
    engines = parts_by_engine(run, [part for part in parts if part.name not in names])
    if missing and engines and list(engines) != [choice.name]:
        say(f"The parts that are there were computed by {in_words(engines)}: {ENGINES_DIFFER}.")
