"""
How fast finite networks converge to the Gaussian process: the outputs of many networks drawn from the prior.

After the convergence figure of Garriga-Alonso, Aitchison & Rasmussen (ICLR 2019): at each width, the distribution of
one image's output over the networks, and the networks' second moments over many images beside the kernel.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from ..errors import UserError
from ..npz import npz_bytes, read_npz
from ..store.atomic import write_atomically

if TYPE_CHECKING:
    from ..kernels.nngp import NNGPKernel

#: Numbers in the largest map of a batch of networks, about: 100 MB in float32.
_NUMBERS = 25_000_000


@dataclass(frozen=True)
class Plan:
    """What is sampled at one width."""

    kernel: dict[str, Any]
    """The kernel's description."""
    data_hash: str
    width: int
    n_images: int
    all_images: int
    """Networks that are evaluated at all images: for the second moments."""
    draws: int
    """Networks that are evaluated at the first image, those before included."""
    seed: int = 0


class Samples:
    """
    The samples of a plan, in a file that is written after every batch: a kill loses one batch.

    :param path: the file.
    :raises UserError: where the file holds another plan's samples; it says what differs.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        n = plan.n_images
        self.outputs = np.empty(0, np.float32)
        """[networks so far]: the output at the first image."""
        self.n_all = 0
        """Networks so far that were evaluated at all images."""
        self.moments = np.zeros((n, n))
        """The sum over these networks of f f^T, for their outputs f [n_images]."""
        self.squares = np.zeros((n, n))
        """The sum of its squares: for the Monte Carlo error."""
        if path.exists():
            self._read()

    @property
    def covariance(self) -> np.ndarray:
        """The second moments [n_images, n_images]."""
        return self.moments / self.n_all

    @property
    def standard_error(self) -> np.ndarray:
        """Of :attr:`covariance`, its Monte Carlo error [n_images, n_images]."""
        return np.sqrt(np.maximum(self.squares / self.n_all - self.covariance**2, 0) / (self.n_all - 1))

    @property
    def done(self) -> bool:
        """Whether all networks were drawn."""
        return len(self.outputs) >= self.plan.draws and self.n_all >= self.plan.all_images

    def draw(self, kernel: "NNGPKernel", X: np.ndarray, progress: Callable[[int], None]) -> None:
        """
        Draw what is missing.

        :param X: [n_images, D], float32.
        :param progress: called with the number of networks drawn since the last call.
        """
        while not self.done:
            first = len(self.outputs)
            at_all = first < self.plan.all_images
            images = X if at_all else X[:1]
            most = (self.plan.all_images if at_all else self.plan.draws) - first
            # A batch's seed is its first network's number: resumed, the networks are the same.
            networks = kernel.network.finite(
                self.plan.width,
                kernel.input_shape,
                draws=min(most, _batch(self.plan.width, len(images), kernel.input_shape)),
                seed=self.plan.seed + first,
            )
            f = networks(images).numpy()[:, :, 0]
            self.outputs = np.concatenate([self.outputs, f[:, 0]])
            if at_all:
                f = f.astype(np.float64)
                self.n_all += len(f)
                self.moments += f.T @ f
                self.squares += (f**2).T @ f**2
            self._write()
            progress(len(f))

    def _write(self) -> None:
        arrays = {
            "plan": np.array(json.dumps(asdict(self.plan), sort_keys=True)),
            "outputs": self.outputs,
            "n_all": np.array(self.n_all),
            "moments": self.moments,
            "squares": self.squares,
        }
        write_atomically(self.path, npz_bytes(arrays))

    def _read(self) -> None:
        arrays = read_npz(self.path, "delete it, and it is drawn again")
        there = json.loads(str(arrays["plan"]))
        asked = json.loads(json.dumps(asdict(self.plan)))
        self.outputs, self.n_all = arrays["outputs"], int(arrays["n_all"])
        # More can be drawn than once was asked for; at all images only where all so far were.
        more = {"draws"} if self.n_all < len(self.outputs) else {"draws", "all_images"}
        differing = [
            key
            for key in asked
            if there.get(key) != asked[key] and not (key in more and asked[key] > there.get(key, 0))
        ]
        if differing:
            named = "; ".join(f"{k} is {_short(there.get(k))} there, {_short(asked[k])} asked for" for k in differing)
            raise UserError(f"{self.path} holds other samples ({named}): choose another --path, or delete it.")
        self.moments, self.squares = arrays["moments"], arrays["squares"]


def _batch(width: int, n_images: int, input_shape: Sequence[int]) -> int:
    """How many networks are evaluated at a time."""
    numbers = n_images * width * int(np.prod(input_shape[1:]))
    # Every network holds weights too: 14 MB of the ConvNet's at width 100.
    return max(1, min(64, _NUMBERS // numbers))


@dataclass(frozen=True)
class Summary:
    """How far the samples of one width are from the limit."""

    width: int
    networks: int
    networks_at_all_images: int
    rms_deviation: float
    """Root mean square of the second moments' relative deviations, sampled / limit - 1."""
    rms_monte_carlo_error: float
    """The same of these deviations' Monte Carlo errors."""
    variance: float
    """Of the first image's outputs over their standard deviation in the limit, as what follows."""
    variance_standard_error: float
    excess_kurtosis: float
    ks_distance: float
    """The Kolmogorov-Smirnov distance from a standard normal distribution."""


def summary(samples: Samples, K: np.ndarray) -> Summary:
    """
    Compare samples with the limit.

    :param K: [n_images, n_images], the kernel.
    """
    upper = np.triu_indices(len(K))
    limit = K.astype(np.float64)[upper]
    deviations = samples.covariance[upper] / limit - 1
    errors = samples.standard_error[upper] / limit
    z = standardised(samples, K)
    return Summary(
        width=samples.plan.width,
        networks=len(z),
        networks_at_all_images=samples.n_all,
        rms_deviation=float(np.sqrt(np.mean(deviations**2))),
        rms_monte_carlo_error=float(np.sqrt(np.mean(errors**2))),
        variance=float(np.mean(z**2)),
        variance_standard_error=float(np.std(z**2) / np.sqrt(len(z) - 1)),
        excess_kurtosis=float(stats.kurtosis(z)),
        ks_distance=float(stats.kstest(z, "norm").statistic),
    )


def standardised(samples: Samples, K: np.ndarray) -> np.ndarray:
    """The first image's outputs over their standard deviation in the limit, [networks]."""
    return samples.outputs.astype(np.float64) / np.sqrt(float(K[0, 0]))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:30]}..."
