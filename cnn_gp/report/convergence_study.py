"""The convergence figure of a network: finite networks of several widths are drawn, and compared with their limit."""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import memory
from ..engines.gram import gram
from ..evaluation.tables import to_csv
from ..progress import Progress
from ..provenance import software
from ..store.atomic import remove_leftovers, write_atomically
from . import figures
from .convergence import Plan, Samples, Summary, most_weights, summary
from .convergence_figures import outputs_figure, tangent_kernels_figure

if TYPE_CHECKING:
    from ..kernels.network_kernel import NetworkKernel

#: Up to this width, all networks are evaluated at all images: narrow networks are cheap and their moments vary most.
_NARROW = 10


@dataclass(frozen=True)
class Study:
    """What is drawn, for every network alike."""

    dataset: str
    """The name of the data set, for titles."""
    X: np.ndarray
    """[n_images, D], float32."""
    widths: tuple[int, ...]
    draws: int
    """Networks of each width, evaluated at the first image."""
    wide_draws: int
    """How many of them are evaluated at all images, at widths above 10."""

    @functools.cached_property
    def data_hash(self) -> str:
        """SHA-256 of the images, hexadecimal."""
        return hashlib.sha256(self.X.tobytes()).hexdigest()

    def plan(self, kernel: "NetworkKernel", width: int) -> Plan:
        """What is drawn at one width."""
        at_all = self.draws if width <= _NARROW else min(self.wide_draws, self.draws)
        return Plan(kernel.describe(), self.data_hash, width, len(self.X), at_all, self.draws)


def converge(
    study: Study, name: str, kernel: "NetworkKernel", folder: Path, command: str, say: Callable[[str], None] = print
) -> list[Summary]:
    """
    Draw what is missing of a study, then write the figure (PNG and SVG) and its numbers (CSV and JSON).

    :param name: of the network; the files' names begin with it.
    :param command: that is recorded with the numbers.
    :param say: called with lines of text on the way.
    :return: a summary for each width.
    :raises UserError: where the folder holds other samples of these names, or can't be written.
    """
    remove_leftovers(folder)
    samples = []
    for width in study.widths:
        plan = study.plan(kernel, width)
        # The weights and the draw that they are made from; of a tangent kernel the derivatives by them at all images.
        arrays = 2 + len(study.X) if plan.tangent else 2
        advice = "give smaller --widths" + (" or fewer --n_images" if plan.tangent else "")
        memory.check(4 * arrays * most_weights(plan), f"{name} at width {width:,}", advice)
        samples.append(Samples(folder / f"{name}_width_{width}.npz", plan))
        done = len(samples[-1].outputs)
        say(f"{name}, width {width}: {done:,} of {study.draws:,} networks are there.")
        with Progress(study.draws, "networks", done) as progress:
            samples[-1].draw(kernel, study.X, progress)
    K = gram(kernel, study.X)
    draw = tangent_kernels_figure if samples[0].plan.tangent else outputs_figure
    for kind in ("png", "svg"):
        # Drawn anew: an SVG's names depend on what the figure was saved as before.
        figure = draw(samples, K, f"{name}: finite networks and their limit, {study.dataset}")
        figures.save(figure, folder / f"{name}.{kind}")
        say(str(folder / f"{name}.{kind}"))
    summaries = [summary(s, K) for s in samples]
    rows = [vars(of_width) for of_width in summaries]
    cells = ({key: f"{value:.6g}" for key, value in row.items()} for row in rows)
    write_atomically(folder / f"{name}.csv", to_csv(cells))
    record = {
        "model": name,
        "widths": rows,
        "dataset": study.dataset,
        "data_hash": study.data_hash,
        "kernel": kernel.describe(),
        "seed": samples[0].plan.seed,
        "command": command,
        "versions": software(),
    }
    write_atomically(folder / f"{name}.json", json.dumps(record, indent=2))
    return summaries
