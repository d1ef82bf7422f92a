"""
What the digests of the stored files cost in stage 2: the seconds of a core that SHA-256 takes, of those that all take.

    python benchmarks/made_run.py --path=DIR --N_train=12000 --N_vali=2400 --N_test=2400
    python benchmarks/digests.py --path=DIR

Both are processor time, which other programs hardly disturb. SHA-256's grows as N^2, the factorisation's as N^3.
"""

import json
import threading
import time
from collections.abc import Callable
from unittest import mock

from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.regression.predict import predict
from cnn_gp.regression.solve import solve, targets
from cnn_gp.store import sealed
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.stored_matrix import StoredGram, StoredKernel

FLAGS = flags.FLAGS
shared_flags.define_path()


class Clock:
    """Calls a function, and adds up the processor time and the bytes that it takes."""

    def __init__(self, function: Callable[[bytes], str]) -> None:
        self.seconds, self.n_bytes = 0.0, 0
        self._function, self._lock = function, threading.Lock()

    def __call__(self, content: bytes) -> str:
        start = time.thread_time()
        try:
            return self._function(content)
        finally:
            with self._lock:
                self.seconds += time.thread_time() - start
                self.n_bytes += len(content)


def main() -> None:
    """Solve and predict, and print one line of JSON."""
    run = RunDirectory(FLAGS.path, "made")
    run.check_complete()
    description, Y = run.description(), targets(run.labels()["Y"], run.description().n_classes)
    start = time.process_time()
    with mock.patch.object(sealed, "_digest", Clock(sealed._digest)) as clock:
        solution = solve(StoredGram(run), Y)
        predict(solution, StoredKernel(run, "Kxvx"), StoredKernel(run, "Kxtx"), description.N_vali, description.N_test)
    total = time.process_time() - start
    print(
        json.dumps(
            {
                "N_train": description.N_train,
                "gigabytes": round(clock.n_bytes / 1e9, 2),
                "seconds of SHA-256": round(clock.seconds, 2),
                "seconds of all": round(total, 2),
            }
        )
    )


if __name__ == "__main__":
    cli.run(main)
