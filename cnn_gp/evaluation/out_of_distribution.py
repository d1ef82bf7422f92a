"""
When not to trust a prediction: what a run's entropy and posterior variance say of images unlike the training images.

Each set of images is compared with the run's test images, whose entropies and variances ought to be smaller. AUROC is
the chance that, of a test image and one of the set, the latter has the larger one (Hendrycks & Gimpel 2017,
arXiv:1610.02136): 0.5 is as good as guessing, 1 perfect.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from ..errors import UserError
from ..npz import npz_bytes, read_npz
from ..progress import Progress, silent
from ..regression.predict import error_percent, posterior_means, posterior_variances
from ..regression.solve import Solution, solve, targets
from ..store.atomic import write_atomically
from ..store.run_directory import RunDirectory
from ..store.stored_matrix import StoredGram, StoredKernel
from .decode import decode, without_nan
from .errors_table import percent
from .metrics import entropy, log_probabilities, rejection, scores
from .predict_images import posterior
from .results import Result
from .tables import Table, to_csv

if TYPE_CHECKING:
    from ..engines.engine import Engine

#: Images whose kernel is computed between two writes of what is finished.
AT_A_TIME = 512

#: The smallest prior variance that is divided by.
_TINY = 1e-300

#: Shares that are rejected, in %.
REJECTED = tuple(range(0, 100, 5))

#: The :attr:`Images.kind` of the test images, and of those of another data set.
TEST, OTHER = "test", "dataset"


class _Posterior(NamedTuple):
    """At the first n images of a set: means [n, classes], posterior and prior variances [n]."""

    means: np.ndarray
    variances: np.ndarray
    prior_variances: np.ndarray


@dataclass(frozen=True, eq=False)
class Images:
    """A set of images that are compared with a run's test images."""

    name: str
    """Unique among those of its kind."""
    kind: str
    """One of :data:`~cnn_gp.data.corruptions.KINDS`, :data:`TEST` or :data:`OTHER`."""
    strength: float | None
    X: np.ndarray
    """[N, D], as the kernel takes them."""
    labels: np.ndarray | None
    """[N]; None where they are of none of the run's classes."""


@dataclass(frozen=True)
class RejectionPoint:
    """The shares that are right in % of the images that are kept, where some in % are rejected by a score."""

    rejected: int
    accuracy_by_entropy: float
    accuracy_by_variance: float
    accuracy_by_relative_variance: float


@dataclass(frozen=True)
class Detection:
    """What is found on a set of images; errors in %, entropies in nats."""

    name: str
    kind: str
    images: int
    mean_entropy: float
    mean_variance: float
    """Posterior, at the run's output scale."""
    rejection: tuple[RejectionPoint, ...]
    """Of the images of this set; where they are of none of the classes, of the test images and these together."""
    strength: float | None = None
    auroc_entropy: float | None = None
    """None for the test images themselves, as are the other two."""
    auroc_variance: float | None = None
    auroc_relative_variance: float | None = None
    """Of the posterior variance over the prior one, K(x, x), which is larger of bright images than of dark ones."""
    error: float | None = None
    """None where the images are of none of the classes, as what follows."""
    negative_log_likelihood: float | None = None
    expected_calibration_error: float | None = None

    @property
    def aurocs(self) -> tuple[float | None, float | None, float | None]:
        """Of the entropy, of the posterior variance, and of that over the prior variance."""
        return self.auroc_entropy, self.auroc_variance, self.auroc_relative_variance


@dataclass(frozen=True)
class OutOfDistribution:
    """The file ``FOLDER/out_of_distribution/RUN.json``."""

    dataset: str
    fingerprint: str
    """Of the run, as in its result; so are ``N_train``, ``noise`` and ``jitter``."""
    N_train: int
    noise: float
    jitter: float
    sets: tuple[Detection, ...]
    """The test images first."""
    command: str
    versions: dict[str, str]

    def is_of(self, result: Result) -> bool:
        """Whether it was found with a result's solution."""
        return all(getattr(self, key) == getattr(result, key) for key in ("fingerprint", "N_train", "noise", "jitter"))

    def to_json(self) -> str:
        """The file's content; keys that are None are left out."""
        values = asdict(self, dict_factory=lambda items: {key: value for key, value in items if value is not None})
        return json.dumps(without_nan(values), indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A line for each set."""
        return to_csv({key: value for key, value in vars(found).items() if key != "rejection"} for found in self.sets)

    def rejection_csv(self) -> str:
        """A line for each set and share."""
        return to_csv({"name": found.name, **vars(point)} for found in self.sets for point in found.rejection)


class Files:
    """
    ``FOLDER/out_of_distribution/RUN.json``, ``RUN.csv``, ``RUN_rejection.csv``, and the posteriors in a folder ``RUN``.

    :param folder: where results lie.
    :param run: the run's name.
    """

    def __init__(self, folder: Path, run: str) -> None:
        here = folder / "out_of_distribution"
        self.json_path = here / f"{run}.json"
        self.csv_path = here / f"{run}.csv"
        self.rejection_path = here / f"{run}_rejection.csv"
        self.posteriors = here / run

    def write(self, found: OutOfDistribution) -> None:
        """:raises UserError: where they can't be written."""
        write_atomically(self.csv_path, found.to_csv())
        write_atomically(self.rejection_path, found.rejection_csv())
        write_atomically(self.json_path, found.to_json())

    def read(self) -> OutOfDistribution | None:
        """None where there is none. :raises UserError: where it can't be read."""
        try:
            return decode(OutOfDistribution, json.loads(self.json_path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.json_path} can't be read ({reason}): move it away and start out_of_distribution.py again."
            ) from error


class Uncertainties(NamedTuple):
    """At a set of images: log probabilities [N, classes], posterior variances [N], and these over prior ones [N]."""

    log_p: np.ndarray
    variances: np.ndarray
    relative_variances: np.ndarray


class Posteriors:
    """
    A run's posteriors at sets of images, each kept in a file: what is there isn't computed again.

    :param result: whose noise and jitter are taken, and its training images.
    :param engine: makes the engine that computes the kernel, when it is first needed.
    """

    def __init__(
        self,
        run: RunDirectory,
        result: Result,
        files: Files,
        engine: "Callable[[], Engine]",
        say: Callable[[str], None],
    ) -> None:
        self._run, self._result, self._files, self._say = run, result, files, say
        self._make_engine = engine
        self._engine: Engine | None = None
        self._solution: Solution | None = None

    def uncertainties(self, images: Images) -> Uncertainties:
        """At a set of images."""
        means, variances, prior = self._posterior(images)
        s = self._result.output_scale
        log_p = log_probabilities(means, s * (variances + self._result.noise_variance))
        return Uncertainties(log_p, s * variances, variances / np.maximum(prior, _TINY))

    def missing(self, sets: Sequence[Images]) -> tuple[int, int]:
        """How many images' posteriors are to be computed for these sets, and how many kernel entries for them."""
        n_images = {images: len(images.X) - len(self._kept(images).means) for images in sets}
        # The test images' are stored.
        computed = sum(n for images, n in n_images.items() if images.kind != TEST)
        return sum(n_images.values()), self._result.N_train * computed

    def _posterior(self, images: Images) -> _Posterior:
        found = self._kept(images)
        N, done = len(images.X), len(found.means)
        if done == N:
            return found
        self._solve()
        self._say(f"{images.name}: {done:,} of {N:,} images are done.")
        with Progress(N, f"images of {images.name}", done) as progress:
            while done < N:
                with silent():
                    X = images.X[done : done + AT_A_TIME]
                    more = self._at_test_images(N) if images.kind == TEST else self._at(X)
                found = _Posterior(*map(np.concatenate, zip(found, more, strict=True)))
                content = npz_bytes({"key": np.array(self._key(images)), **found._asdict()})
                write_atomically(self._path(images), content)
                progress(len(found.means) - done)
                done = len(found.means)
        return found

    def _at(self, X: np.ndarray) -> _Posterior:
        training = self._run.images()["X"][: self._result.N_train]
        X = X.astype(training.dtype)
        self._engine = self._engine or self._make_engine()
        solution = self._solve()
        return _Posterior(*posterior(self._engine, X, training, solution.alpha, solution), self._engine.diag(X))

    def _at_test_images(self, N: int) -> _Posterior:
        """At the first N, whose kernel is stored."""
        kernel, solution = StoredKernel(self._run, "Kxtx"), self._solve()
        (means,) = posterior_means(kernel, [solution.alpha], N)
        return _Posterior(means, posterior_variances(kernel, solution, N), kernel.diagonal()[:N])

    def _solve(self) -> Solution:
        if self._solution is None:
            r = self._result
            Y = targets(self._run.labels()["Y"][: r.N_train], self._run.description().n_classes)
            self._say(f"{r.run}: factorising for {r.N_train:,} images.")
            self._solution = solve(StoredGram(self._run), Y, r.jitter, r.noise, self._say)
            if self._solution.jitter != r.jitter:
                raise UserError(
                    f"On this machine {r.run} is solved with a relative jitter of {self._solution.jitter:g}, and its "
                    f"result with {r.jitter:g}: classify it again here, with --jitter={self._solution.jitter:g} "
                    "--overwrite."
                )
        return self._solution

    def _kept(self, images: Images) -> _Posterior:
        if self._path(images).exists():
            arrays = read_npz(self._path(images), "delete it, and it is computed again")
            if str(arrays.pop("key", "")) == self._key(images):
                return _Posterior(**arrays)
        return _Posterior(np.empty((0, self._run.description().n_classes)), np.empty(0), np.empty(0))

    def _path(self, images: Images) -> Path:
        # By what decides it: fewer images, or another result, don't take the place of hours of work.
        name = f"dataset_{images.name}" if images.kind == OTHER else images.name
        return self._files.posteriors / f"{name}.{self._key(images)[:16]}.npz"

    def _key(self, images: Images) -> str:
        """Of what decides the posterior at a set."""
        r = self._result
        digest = hashlib.sha256(repr((r.fingerprint, r.N_train, r.noise, r.jitter, images.X.shape)).encode())
        digest.update(np.ascontiguousarray(images.X, images.X.dtype.newbyteorder("<")).data)
        return digest.hexdigest()


def detections(posteriors: Posteriors, sets: Sequence[Images]) -> tuple[Detection, ...]:
    """
    What is found on each set.

    :param sets: the test images first.
    """
    test, *others = sets
    of_test = posteriors.uncertainties(test)
    found = [(test, of_test), *((images, posteriors.uncertainties(images)) for images in others)]
    return tuple(_detection(images, of_images, test, of_test) for images, of_images in found)


def table(runs: Mapping[str, OutOfDistribution]) -> Table:
    """A line for each run and set."""
    header = ["run", "images", "number", "error, %", "NLL, nats", "entropy, nats"]
    header += [f"AUROC of {score}" for score in ("entropy", "variance", "variance / prior")]
    rows = [
        [
            run,
            s.name,
            f"{s.images:,}",
            "" if s.error is None else percent(s.error),
            "" if s.negative_log_likelihood is None else f"{s.negative_log_likelihood:.4f}",
            f"{s.mean_entropy:.3f}",
            *("" if auroc is None else f"{auroc:.3f}" for auroc in s.aurocs),
        ]
        for run, found in runs.items()
        for s in found.sets
    ]
    return Table(header, rows, "llrrrrrrr")


def _detection(images: Images, found: Uncertainties, test: Images, of_test: Uncertainties) -> Detection:
    log_p, variances, relative_variances = found
    assert test.labels is not None
    values: dict[str, float] = {}
    if images is not test:
        is_other = np.repeat([0, 1], [len(test.X), len(images.X)])
        for score, numbers in {
            "entropy": (entropy(of_test.log_p), entropy(log_p)),
            "variance": (of_test.variances, variances),
            "relative_variance": (of_test.relative_variances, relative_variances),
        }.items():
            values[f"auroc_{score}"] = float(roc_auc_score(is_other, np.concatenate(numbers)))
    if images.labels is not None:
        of_labels = scores(log_p, images.labels)
        values["error"] = error_percent(log_p, images.labels)
        values["negative_log_likelihood"] = of_labels.negative_log_likelihood
        values["expected_calibration_error"] = of_labels.expected_calibration_error
        wrong = log_p.argmax(axis=1) != images.labels
        rejected = _rejection(wrong, entropy(log_p), variances, relative_variances)
    else:
        wrong = np.r_[of_test.log_p.argmax(axis=1) != test.labels, np.ones(len(log_p), bool)]
        together = [np.concatenate(pair) for pair in zip(of_test, found, strict=True)]
        rejected = _rejection(wrong, entropy(together[0]), *together[1:])
    return Detection(
        images.name,
        images.kind,
        len(images.X),
        float(entropy(log_p).mean()),
        float(variances.mean()),
        rejected,
        images.strength,
        **values,
    )


def _rejection(wrong: np.ndarray, *scores: np.ndarray) -> tuple[RejectionPoint, ...]:
    """
    :param wrong: [N]; ``scores``: [N] each, in the order of :class:`RejectionPoint`; the largest are rejected first.
    """
    accuracies = [100 - rejection(-score, wrong)[1] for score in scores]
    places = {share: share * len(wrong) // 100 for share in REJECTED}
    return tuple(RejectionPoint(share, *(float(a[place]) for a in accuracies)) for share, place in places.items())
