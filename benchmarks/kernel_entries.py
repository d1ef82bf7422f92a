"""
Microseconds per kernel entry, for each of the paper's kernels and each engine, side by side with neural-tangents.

    python benchmarks/kernel_entries.py --data_dir=DIR [--cores=1,2] [--tiles=8,16,32,64] [--nt_python=PYTHON]

On MNIST images where --data_dir has them, else on synthetic ones. Each measurement is a process of its own on its own
cores (affinity), one after the other; a time is the median of --repeats. Prints a table and writes --json.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from cnn_gp import cli, datasets
from cnn_gp.architectures import MODELS, build_kernel
from cnn_gp.errors import UserError
from cnn_gp.store import software

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder of MNIST's files; without it synthetic images.")
flags.DEFINE_list("models", list(MODELS[:-1]), "The kernels.")
flags.DEFINE_list("cores", ["1", "2"], "Numbers of cores to measure on; 0 means GPUs (--n_gpus).")
flags.DEFINE_list("tiles", ["8", "16", "32", "64"], "Images on a side of the tensorflow engine's tile, each measured.")
flags.DEFINE_integer("n_gpus", 0, "With --cores=0: GPUs to use.")
flags.DEFINE_integer("n_images", 96, "Images on a side of the matrix that is timed.")
flags.DEFINE_integer("repeats", 5, "Measurements of each, of which the median counts.")
flags.DEFINE_enum("float_type", "float32", ["float32", "float64"], "Precision.")
flags.DEFINE_string("nt_python", None, "Python of an environment with neural-tangents (neural_tangents_entry.py).")
flags.DEFINE_string("json", None, "File to write the measurements to.")
flags.DEFINE_string("measure", None, "Internal: measure this one case and print JSON.")


def images(n: int) -> np.ndarray:
    """[n, 784] training images."""
    name = "synthetic" if FLAGS.data_dir is None else "mnist"
    return datasets.load(name, data_dir=FLAGS.data_dir, N_train=n, N_vali=1, N_test=1).X


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: time the tensorflow engine on some cores with some tile."""
    if case["cores"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["cores"]])
    with cli.without_startup_messages():
        from cnn_gp.engines.tensorflow import TensorFlowEngine, configure

        configure(FLAGS.n_gpus)
    n = FLAGS.n_images
    X = images(2 * n).astype(FLAGS.float_type)
    engine = TensorFlowEngine(build_kernel(case["model"], [1, 28, 28]), n_gpus=FLAGS.n_gpus, tile=case["tile"])
    start = time.perf_counter()
    values = engine.matrix(X[:2], X[n : n + 2])
    compiling = time.perf_counter() - start
    seconds = []
    for _ in range(FLAGS.repeats):
        start = time.perf_counter()
        engine.matrix(X[:n], X[n:])
        seconds.append(time.perf_counter() - start)
    return {
        **case,
        "engine": engine.name,
        "us_per_entry": 1e6 * statistics.median(seconds) / n**2,
        "compile_seconds": compiling,
        "first_value": float(values[0, 0]),
    }


def in_a_process(case: dict[str, Any]) -> dict[str, Any]:
    """Run :func:`measure` in a fresh process with the same flags."""
    command = [sys.executable, *sys.argv, f"--measure={json.dumps(case)}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def neural_tangents(model: str, cores: int) -> dict[str, Any]:
    """The same measurement of neural-tangents, in its own environment, at the best of its tile sizes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, images(64).reshape(-1, 28, 28, 1).astype(FLAGS.float_type))
        program = Path(__file__).with_name("neural_tangents_entry.py")
        command = [FLAGS.nt_python, str(program), model, str(path), "--tiles=8,16,32", f"--repeats={FLAGS.repeats}"]
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, available[:cores])
        try:
            # JAX on the CPU, whatever else the machine has.
            done = subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""},
            )
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            raise UserError(
                f"neural-tangents can't be timed with {FLAGS.nt_python} ({reason}): check that Python."
            ) from error
        finally:
            os.sched_setaffinity(0, available)
    best = json.loads(done.stdout.splitlines()[-1])
    return {"model": model, "cores": cores, "engine": "neural-tangents", **best}


def report(measurements: list[dict[str, Any]]) -> str:
    """A Markdown table: a line per kernel and number of cores, the best tile of each engine, the ratio."""
    lines = [
        "| kernel | cores | tensorflow, us per entry (tile) | all tiles | neural-tangents | ratio |",
        "|" + "---|" * 6,
    ]
    for model in FLAGS.models:
        for cores in map(int, FLAGS.cores):
            here = [m for m in measurements if (m["model"], m["cores"]) == (model, cores)]
            ours = sorted((m for m in here if m["engine"] == "tensorflow"), key=lambda m: m["tile"])
            best = min(ours, key=lambda m: m["us_per_entry"])
            sweep = ", ".join(f"{m['tile']}: {m['us_per_entry']:.1f}" for m in ours)
            peer = next((m for m in here if m["engine"] == "neural-tangents"), None)
            cells = [model, str(cores), f"{best['us_per_entry']:.1f} ({best['tile']})", sweep]
            cells += (
                [f"{peer['us_per_entry']:.0f}", f"{peer['us_per_entry'] / best['us_per_entry']:.1f}"]
                if peer
                else ["", ""]
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure everything, print the table."""
    if FLAGS.measure is not None:
        print(json.dumps(measure(json.loads(FLAGS.measure))))
        return
    measurements = []
    for model in FLAGS.models:
        for cores in map(int, FLAGS.cores):
            for tile in map(int, FLAGS.tiles):
                measurements.append(in_a_process({"model": model, "cores": cores, "tile": tile}))
                print(f"{model}, {cores} cores, tile {tile}: {measurements[-1]['us_per_entry']:.1f} us", flush=True)
            if FLAGS.nt_python is not None:
                measurements.append(neural_tangents(model, cores))
                print(f"{model}, {cores} cores, neural-tangents: {measurements[-1]['us_per_entry']:.1f} us", flush=True)
    print(f"\n{FLAGS.float_type}, {'synthetic images' if FLAGS.data_dir is None else 'MNIST'}, {_processor()}\n")
    print(report(measurements))
    if FLAGS.json is not None:
        about = {"software": software(), "processor": _processor(), "float_type": FLAGS.float_type}
        Path(FLAGS.json).write_text(json.dumps({**about, "measurements": measurements}, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    cli.run(main)
