"""The run with the Gaussian process's kernel that belongs to a run with a neural tangent kernel."""

from dataclasses import replace

from ..errors import UserError
from ..store.description import differences
from ..store.run_directory import RunDirectory


def default_nngp_run(name: str) -> str:
    """The name without the ``_ntk`` that names of runs with a neural tangent kernel end in by default."""
    return name.removesuffix("_ntk")


def check_nngp_run(nngp: RunDirectory, run: RunDirectory) -> None:
    """
    :param nngp: the run with the Gaussian process's kernel.
    :param run: that with the neural tangent kernel.
    :raises UserError: where they aren't that, of the same network, images and precision.
    """
    asked = run.description()
    if asked.kernel.get("kernel") != "ntk":
        raise UserError(
            f"The run {run.name} has the kernel of a Gaussian process, whose own variances --variances gives; the "
            "variance of a trained ensemble (--ensemble) is that of a run with --kernel=ntk."
        )
    if not nngp.folder.exists():
        raise UserError(
            f"There is no run {nngp.name} in {nngp.workdir}, which --ensemble needs beside {run.name}: compute it with "
            "--kernel=nngp and otherwise the same flags, or give the name of such a run as --nngp_run."
        )
    there = nngp.description()
    if there.kernel.get("kernel") == "ntk":
        raise UserError(
            f"The run {nngp.name} has a neural tangent kernel; expected one with --kernel=nngp: give its name as "
            "--nngp_run."
        )
    # What the numbers don't depend on: the tiles' size, and what network and data set are called.
    network = {key: value for key, value in asked.kernel.items() if key != "kernel"}
    asked = replace(asked, kernel=network)
    there = replace(there, n_max=asked.n_max, model=asked.model, dataset=asked.dataset)
    if there != asked:
        raise UserError(
            f"The run {nngp.name} isn't of the network, images and precision of {run.name} "
            f"({differences(there, asked)}): compute it as {run.name}, with --kernel=nngp, and give its name as "
            "--nngp_run if it isn't the default."
        )
