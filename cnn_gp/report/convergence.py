"""
How fast finite networks converge to their limit: many networks drawn from the prior, and what is measured of them.

After the convergence figure of Garriga-Alonso, Rasmussen & Aitchison (ICLR 2019): at each width, the distribution of
one image's output over the networks, and the networks' second moments over many images beside the kernel. Of a neural
tangent kernel, the same of the networks' own tangent kernels: at one image, and their mean over many.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from ..errors import UserError
from ..evaluation.hyperparameters import hyperparameters
from ..npz import npz_bytes, read_npz
from ..store.atomic import write_atomically

if TYPE_CHECKING:
    from ..kernels.finite import FiniteNetwork
    from ..kernels.network_kernel import NetworkKernel

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

    @property
    def tangent(self) -> bool:
        """Whether networks' tangent kernels are sampled, in place of their outputs."""
        return self.kernel.get("kernel") == "ntk"


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
        """[networks so far]: the output f at the first image, or the tangent kernel there."""
        self.n_all = 0
        """Networks so far that were evaluated at all images."""
        self.moments = np.zeros((n, n))
        """The sum over these networks of f f^T, for their outputs f [n_images], or of their tangent kernels."""
        self.squares = np.zeros((n, n))
        """The sum of the squares of these matrices' entries: for the Monte Carlo error."""
        if path.exists():
            self._read()

    @property
    def covariance(self) -> np.ndarray:
        """The second moments, or the mean tangent kernel: [n_images, n_images]."""
        return self.moments / self.n_all

    @property
    def standard_error(self) -> np.ndarray:
        """Of :attr:`covariance`, its Monte Carlo error [n_images, n_images]."""
        return np.sqrt(np.maximum(self.squares / self.n_all - self.covariance**2, 0) / (self.n_all - 1))

    @property
    def done(self) -> bool:
        """Whether all networks were drawn."""
        return len(self.outputs) >= self.plan.draws and self.n_all >= self.plan.all_images

    def draw(self, kernel: "NetworkKernel", X: np.ndarray, progress: Callable[[int], None]) -> None:
        """
        Draw what is missing.

        :param X: [n_images, D], float32.
        :param progress: called with the number of networks drawn since the last call.
        """
        sample = _tangent_kernels if self.plan.tangent else _outputs
        while not self.done:
            first = len(self.outputs)
            at_all = first < self.plan.all_images
            images = X if at_all else X[:1]
            most = (self.plan.all_images if at_all else self.plan.draws) - first
            # A batch's seed is its first network's number: resumed, the networks are the same.
            networks = kernel.network.finite(
                self.plan.width,
                kernel.input_shape,
                draws=min(most, _batch(self.plan, len(images), kernel.input_shape)),
                seed=self.plan.seed + first,
            )
            first_image, moments, squares = sample(networks, images)
            self.outputs = np.concatenate([self.outputs, first_image.astype(np.float32)])
            if at_all:
                self.n_all += len(first_image)
                self.moments += moments
                self.squares += squares
            self._write()
            progress(len(first_image))

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
        remedy = "delete it, and they are drawn again, or choose another --path"
        arrays = read_npz(self.path, remedy)
        missing = {"plan", "outputs", "n_all", "moments", "squares"} - arrays.keys()
        if missing:
            raise UserError(f"{self.path} has no {', '.join(sorted(missing))}, so it holds no samples: {remedy}.")
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


#: Of a batch of networks: at the first image [networks], and sums over the networks [n_images, n_images] of a matrix
#: and of the squares of its entries.
_Sampled = tuple[np.ndarray, np.ndarray, np.ndarray]


def _outputs(networks: "FiniteNetwork", images: np.ndarray) -> _Sampled:
    f = networks(images).numpy()[:, :, 0].astype(np.float64)
    return f[:, 0], f.T @ f, (f**2).T @ f**2


def _tangent_kernels(networks: "FiniteNetwork", images: np.ndarray) -> _Sampled:
    kernels = networks.ntk(images).numpy().astype(np.float64)
    return kernels[:, 0, 0], kernels.sum(axis=0), (kernels**2).sum(axis=0)


def _batch(plan: Plan, n_images: int, input_shape: Sequence[int]) -> int:
    """How many networks are evaluated at a time."""
    numbers = n_images * plan.width * int(np.prod(input_shape[1:]))
    if plan.tangent:
        # The derivatives by all weights at all images.
        numbers = max(numbers, n_images * most_weights(plan))
    # Every network holds weights too: 14 MB of the ConvNet's at width 100.
    return max(1, min(64, _NUMBERS // numbers))


def most_weights(plan: Plan) -> int:
    """The weights of the hidden layers of a network, at most."""
    sizes = hyperparameters(plan.kernel).filter_sizes
    return plan.width**2 * int(sum(np.prod(size) if isinstance(size, tuple) else size**2 for size in sizes))


@dataclass(frozen=True)
class Summary:
    """How far the samples of one width are from the limit."""

    width: int
    networks: int
    networks_at_all_images: int
    rms_deviation: float
    """Root mean square of the relative deviations of the second moments, or of the mean tangent kernel, from the limit:
    sampled / limit - 1."""
    rms_monte_carlo_error: float
    """The same of these deviations' Monte Carlo errors."""

    def in_words(self) -> str:
        """What of it is printed."""
        raise NotImplementedError


@dataclass(frozen=True)
class OutputSummary(Summary):
    """Of networks beside the Gaussian process."""

    variance: float
    """Of the first image's outputs over their standard deviation in the limit, as what follows."""
    variance_standard_error: float
    excess_kurtosis: float
    ks_distance: float
    """The Kolmogorov-Smirnov distance from a standard normal distribution."""

    def in_words(self) -> str:
        """What of it is printed."""
        return (
            f"second moments off by {100 * self.rms_deviation:.1f} % (Monte Carlo error "
            f"{100 * self.rms_monte_carlo_error:.1f} %), excess kurtosis {self.excess_kurtosis:.2f}"
        )


@dataclass(frozen=True)
class TangentSummary(Summary):
    """Of networks' tangent kernels beside the neural tangent kernel."""

    mean: float
    """Of the networks' tangent kernels at the first image, over the limit there, as what follows."""
    standard_deviation: float

    def in_words(self) -> str:
        """What of it is printed."""
        return (
            f"mean tangent kernel off by {100 * self.rms_deviation:.1f} % (Monte Carlo error "
            f"{100 * self.rms_monte_carlo_error:.1f} %), one network's by {100 * self.standard_deviation:.1f} %"
        )


def summary(samples: Samples, K: np.ndarray) -> Summary:
    """
    Compare samples with the limit.

    :param K: [n_images, n_images], the kernel.
    """
    upper = np.triu_indices(len(K))
    limit = K.astype(np.float64)[upper]
    deviations = samples.covariance[upper] / limit - 1
    errors = samples.standard_error[upper] / limit
    of_all = (
        samples.plan.width,
        len(samples.outputs),
        samples.n_all,
        float(np.sqrt(np.mean(deviations**2))),
        float(np.sqrt(np.mean(errors**2))),
    )
    if samples.plan.tangent:
        ratio = samples.outputs.astype(np.float64) / float(K[0, 0])
        return TangentSummary(*of_all, mean=float(ratio.mean()), standard_deviation=float(ratio.std(ddof=1)))
    z = standardised(samples, K)
    return OutputSummary(
        *of_all,
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
