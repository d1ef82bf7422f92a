"""Stage 1: compute the parts of a run that aren't there yet."""

import time
from typing import TYPE_CHECKING

import numpy as np

from .datasets import Dataset
from .progress import Progress
from .store import Description, RunDirectory, software
from .tiles import BlockRow

if TYPE_CHECKING:
    from .engines import Engine
    from .kernels import NNGPKernel


def describe_run(kernel: "NNGPKernel", model: str, data: Dataset, n_max: int, float_type: str) -> Description:
    """The description of a run of a kernel on a data set."""
    N_train, N_vali, N_test = data.sizes
    return Description(
        model=model,
        kernel=kernel.describe(),
        dataset=data.name,
        data_hash=data.data_hash(),
        image_shape=tuple(data.image_shape),
        n_classes=data.n_classes,
        N_train=N_train,
        N_vali=N_vali,
        N_test=N_test,
        n_max=n_max,
        float_type=float_type,
    )


def compute_run(run: RunDirectory, engine: "Engine", data: Dataset) -> None:
    """
    Compute what is missing of a run that was begun, and write its view.

    A part is committed as soon as it is finished: a kill loses only the part at work.
    """
    description = run.description()
    dtype = np.dtype(description.float_type)
    images = {
        "Kxx": data.X.astype(dtype, copy=False),
        "Kxvx": data.Xv.astype(dtype, copy=False),
        "Kxtx": data.Xt.astype(dtype, copy=False),
    }
    missing, _ = run.missing_parts()
    total = description.tiling.entries
    done = total - sum(part.entries for part in missing)
    who = {"engine": engine.name, **software()}
    with Progress(total, "entries", done) as progress:
        for part in missing:
            start = time.perf_counter()
            rows = [_compute_row(row, engine, images, progress) for row in part.rows]
            run.write_part(part, rows, {**who, "seconds": time.perf_counter() - start})
    run.write_view()


def _compute_row(
    row: BlockRow, engine: "Engine", images: dict[str, np.ndarray], progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """The entries of a row of blocks, and the variances of its images."""
    X, training = images[row.matrix][row.start : row.stop], images["Kxx"]
    if row.matrix != "Kxx":
        return engine.matrix(X, training, progress), engine.diag(X)
    square = engine.matrix(X, progress=progress)
    beyond = training[row.stop :]
    entries = np.concatenate([square, engine.matrix(X, beyond, progress)], axis=1) if len(beyond) else square
    return entries, np.diagonal(square).copy()
