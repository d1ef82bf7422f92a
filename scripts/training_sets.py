"""
Errors of a run with several training sets that have no image in common: how much they depend on the training images.

    python scripts/training_sets.py --path=runs/digits --model=resnet_gp --sizes=100,200

Everything is read from the run's stored kernel; its training images are cut into sets that follow each other.
"""

from pathlib import Path

from absl import flags

from cnn_gp import cli, memory, shared_flags
from cnn_gp.errors import UserError
from cnn_gp.evaluation.tables import to_text
from cnn_gp.evaluation.training_sets import Files, TrainingSets, spreads, table
from cnn_gp.provenance import software
from cnn_gp.regression.learning_curve import default_sizes
from cnn_gp.regression.memory_needs import n_bytes
from cnn_gp.regression.solve import targets
from cnn_gp.regression.training_sets import TrainingSet, disjoint_sets, errors_of_training_sets
from cnn_gp.store.atomic import check_writable, remove_leftovers
from cnn_gp.store.stored_matrix import StoredGram, StoredKernel

#: Largest jitter and noise, as classify_gp.py has it.
LARGEST = 1e6

FLAGS = flags.FLAGS
shared_flags.define_run()
shared_flags.define_csv_dir()
flags.DEFINE_list(
    "sizes", ["auto"], "Numbers of training images; auto: 500, 1000, 2000, ... up to half of the run's training images."
)
flags.DEFINE_integer("most", 20, "The most training sets of a size.", lower_bound=1)
flags.DEFINE_float("noise", 0.0, "Observation noise, relative to the mean diagonal of a set's kernel.")
flags.DEFINE_float("jitter", 0.0, "Smallest jitter to try, relative to the mean diagonal of a set's kernel.")
flags.DEFINE_bool("overwrite", False, "Replace what was found with other settings.")


def main() -> None:
    """Parse the flags, compute what is missing, write and print it."""
    run = shared_flags.run_directory()
    description = run.description()
    N = description.N_train
    for name, value in (("noise", FLAGS.noise), ("jitter", FLAGS.jitter)):
        # Written so that NaN is refused.
        if not 0 <= value <= LARGEST:
            raise UserError(f"--{name} is {value:g}; expected a number from 0 to {LARGEST:g}, such as 1e-3.")
    sets = disjoint_sets(N, _sizes(N), FLAGS.most)
    files = Files(Path(FLAGS.path) / FLAGS.csv_dir, run.name)
    check_writable(files.folder)
    remove_leftovers(files.folder)

    def as_found(errors: list[TrainingSet]) -> TrainingSets:
        return TrainingSets(
            description.dataset,
            description.fingerprint,
            description.N_vali,
            description.N_test,
            FLAGS.noise,
            FLAGS.jitter,
            tuple(errors),
            cli.command(),
            software(),
        )

    found = None if FLAGS.overwrite else files.read()
    if found is None:
        run.check_complete()
        run.check_data()
        largest = max(n for n, _ in sets)
        gram, labels = StoredGram(run), run.labels()
        # A set's block beside its factor.
        needed = n_bytes(largest, gram.n_max, largest) + 8 * largest**2
        memory.check(needed, f"The Gram matrix of {largest:,} images, twice,", "give smaller --sizes")
        errors = errors_of_training_sets(
            gram,
            targets(labels["Y"], description.n_classes),
            sets,
            (StoredKernel(run, "Kxvx"), labels["Yv"]),
            (StoredKernel(run, "Kxtx"), labels["Yt"]),
            FLAGS.jitter,
            FLAGS.noise,
            print,
        )
        found = as_found(errors)
        files.write(found)
    elif found.is_as_asked(as_found([TrainingSet(n, first, 0.0, 0.0, 0.0) for n, first in sets])):
        print(f"{files.json_path} is there already.")
    else:
        raise UserError(
            f"{files.json_path} is of another run, noise, jitter or other training sets than those that are asked for: "
            "give --overwrite to replace it, or another --csv_dir."
        )
    print(to_text(*table(spreads(found.sets))))
    print(f"Errors in %: means over the sets and standard deviations; those of each set are in {files.csv_path}.")


def _sizes(N: int) -> list[int]:
    """Those of --sizes, in ascending order. :raises UserError: where they aren't numbers, or there are none."""
    texts = list(dict.fromkeys(FLAGS.sizes))
    if texts == ["auto"]:
        sizes = [n for n in default_sizes(N) if 2 * n <= N]
        if not sizes:
            raise UserError(f"The run has {N:,} training images, too few for two sets: give --sizes=1 or more images.")
        return sizes
    numbers = [shared_flags.whole_number(text.strip()) for text in texts]
    # One size may be written in two ways.
    sizes = sorted({n for n in numbers if n is not None})
    if not sizes or None in numbers:
        raise UserError(f"--sizes is {','.join(texts)}; expected auto or numbers of training images: --sizes=500,1000.")
    return sizes


if __name__ == "__main__":
    cli.run(main)
