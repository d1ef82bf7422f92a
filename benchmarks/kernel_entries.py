"""
Microseconds per kernel entry, for each of the paper's kernels and each engine, side by side with neural-tangents.

    python benchmarks/kernel_entries.py --data_dir=DIR [--cores=1,2] [--batches=16] [--nt_python=PYTHON]

On MNIST images where --data_dir has them, else on synthetic ones. Each measurement is a process of its own on its own
cores (affinity), one after the other; a time is the median of --repeats. Prints a table and writes --json.

    python benchmarks/kernel_entries.py --data_dir=DIR --variants=ntk,pool_2,pool_5,pool_5_ntk,pool_global

measures the kernels with a pool, the neural tangent kernels and the plain kernel with the fused engine, in turns in one
process without TensorFlow, and prints how many plain entries an entry costs. These times are the processor's, divided
by the number of cores, for a machine that others share. With --nt_python neural-tangents is measured beside them, with
a pool at the best of --nt_batches and once, for a pair takes it seconds. Of --models here, "myrtle5" has images of
28 x 28 pixels, and "myrtle5_rgb" those of 3 x 32 x 32.
"""

import json
import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import operations
from absl import flags

from cnn_gp import cli
from cnn_gp.data import datasets
from cnn_gp.engines.engine import Engine
from cnn_gp.engines.fused.engine import FusedEngine
from cnn_gp.engines.fused.program import Program
from cnn_gp.errors import UserError
from cnn_gp.kernels.architectures import PAPER_MODELS, build_kernel, parse_pool
from cnn_gp.provenance import processor, software

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder of MNIST's files; without it synthetic images.")
flags.DEFINE_list("models", list(PAPER_MODELS), "The kernels.")
flags.DEFINE_list("cores", ["1", "2"], "Numbers of cores to measure on; 0 means GPUs (--n_gpus).")
flags.DEFINE_list("batches", ["16"], "Images on a side of the tensorflow engine's batch, each measured.")
flags.DEFINE_integer("n_gpus", 0, "With --cores=0: GPUs to use.")
flags.DEFINE_integer("n_images", 96, "Images on a side of the matrix that is timed with the tensorflow engine.")
flags.DEFINE_integer("n_fused", 512, "The same for the fused engine.")
flags.DEFINE_integer("n_pooled", 64, "The least of the same for a kernel with a pool.")
flags.DEFINE_integer("repeats", 5, "Measurements of each, of which the median counts.")
flags.DEFINE_enum("float_type", "float32", ["float32", "float64"], "Precision.")
flags.DEFINE_string("nt_python", None, "Python of an environment with neural-tangents (neural_tangents_entry.py).")
flags.DEFINE_string("nt_batches", "2,4", "Images on a side of neural-tangents' batch, with a pool.")
flags.DEFINE_string("json", None, "File to write the measurements to.")
flags.DEFINE_list("variants", [], "Of each kernel, as in the names of runs: ntk, pool_5, pool_global_ntk, ...")
flags.DEFINE_string("measure", None, "Internal: measure this one case and print JSON.")


GRAY = (1, 28, 28)


def images(n: int, shape: tuple[int, ...] = GRAY) -> np.ndarray:
    """[n, 784] training images, or random ones where these are in colour."""
    if shape != GRAY:
        return np.random.default_rng(0).random((n, math.prod(shape)))
    name = "synthetic" if FLAGS.data_dir is None else "mnist"
    return datasets.load(name, data_dir=FLAGS.data_dir, N_train=n, N_vali=1, N_test=1).X


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: time an engine on some cores, the tensorflow one with some batch."""
    if case["cores"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["cores"]])
    more: dict[str, Any] = {}
    with cli.without_startup_messages():
        from cnn_gp.engines.tensorflow import TensorFlowEngine, configure

        configure(FLAGS.n_gpus)
        kernel = build_kernel(case["model"], [1, 28, 28])
    engine: Engine
    if case["engine"] == "fused":
        from cnn_gp.engines.fused.lowering import lower

        program = lower(kernel)
        engine, n = FusedEngine(program), FLAGS.n_fused
        more = {"operations": operations.per_entry(program), "peak": operations.peak()}
    else:
        engine = TensorFlowEngine(kernel, n_gpus=FLAGS.n_gpus, batch_size=case["batch"])
        n = FLAGS.n_images
    X = images(2 * n).astype(FLAGS.float_type)
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
        **more,
        "us_per_entry": 1e6 * statistics.median(seconds) / n**2,
        "compile_seconds": compiling,
        "first_value": float(values[0, 0]),
    }


def shape_of(model: str) -> tuple[int, ...]:
    """Of the images: channels, rows and columns."""
    return (3, 32, 32) if model.endswith("_rgb") else GRAY


def lowered(model: str, variant: str) -> tuple[Program, int]:
    """In a process of its own, which imports TensorFlow: a kernel's program, and its number of displacements."""
    from cnn_gp.engines.fused.lowering import lower

    which, pool = kernel_and_pool(variant)
    kernel = build_kernel(model.removesuffix("_rgb"), shape_of(model), kernel=which, pool=parse_pool(pool))
    return lower(kernel), kernel.n_displacements


def measure_variants(model: str, cores: int) -> list[dict[str, Any]]:
    """In a process of its own: the fused engine on some cores, each of --variants and the plain kernel in turns."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    cases, variants, peak = [], ["", *FLAGS.variants], operations.peak()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        programs = list(process.map(lowered, [model] * len(variants), variants))
    for variant, (program, n_displacements) in zip(variants, programs, strict=True):
        n = max(FLAGS.n_pooled, int(FLAGS.n_fused / n_displacements**0.5) // 16 * 16)
        engine = FusedEngine(program, n_threads=cores)
        cases.append((variant, engine, images(2 * n, shape_of(model)).astype(np.float32), n_displacements))
    for _, engine, X, _ in cases:
        engine.matrix(X[:2], X[2:4])
    seconds: dict[str, list[float]] = {variant: [] for variant, *_ in cases}
    for _ in range(FLAGS.repeats):
        for variant, engine, X, _ in cases:
            n = len(X) // 2
            start = time.process_time()
            engine.matrix(X[:n], X[n:])
            seconds[variant].append((time.process_time() - start) / (cores * n**2))
    us = {variant: 1e6 * statistics.median(times) for variant, times in seconds.items()}
    return [
        {
            "model": model,
            "variant": variant,
            "cores": cores,
            "displacements": n_displacements,
            "operations": operations.per_entry(engine.program),
            "peak": peak,
            "us_per_entry": us[variant],
            "plain_entries": us[variant] / us[""],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }
        for variant, engine, _, n_displacements in cases
    ]


def kernel_and_pool(variant: str) -> tuple[str, str]:
    """ "pool_5_ntk" -> ("ntk", "5")"""
    pool = variant.removesuffix("ntk").rstrip("_").removeprefix("pool_") or "none"
    return "ntk" if variant.endswith("ntk") else "nngp", pool


def report_variants(measurements: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [
        "| kernel | cores | displacements | us | plain entries | of peak | peak MB | neural-tangents, us | ratio | "
        "its peak MB |"
    ]
    lines.append("|" + "---|" * 10)
    for m in measurements:
        name = "_".join(filter(None, (m["model"], m["variant"])))
        cells = [f"`{name}`", str(m["cores"]), str(m["displacements"]), f"{m['us_per_entry']:.1f}"]
        cells += [f"{m['plain_entries']:.2f}", f"{100 * fraction_of_peak(m):.0f} %", f"{m['peak_mb']:.0f}"]
        if "peer" in m:
            peer = m["peer"]
            us = peer["processor_us"] / m["cores"]
            cells += [f"{us:,.0f} ({peer['batch']} x {peer['batch']})"]
            cells += [f"{us / m['us_per_entry']:,.0f}", f"{peer['peak_mb']:,.0f}"]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_a_process(case: dict[str, Any]) -> Any:
    """Run :func:`measure` or :func:`measure_variants` in a fresh process with the same flags."""
    command = [sys.executable, *sys.argv, f"--measure={json.dumps(case)}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def neural_tangents(model: str, cores: int, variant: str = "", *, pooled: bool = False) -> dict[str, Any]:
    """The same measurement of neural-tangents, in its own environment, at the best of its batch sizes."""
    batches, repeats = (FLAGS.nt_batches, 1) if pooled else ("8,16,32", FLAGS.repeats)
    which, pool = kernel_and_pool(variant)
    channels, *size = shape_of(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        X = images(64, (channels, *size)).reshape(-1, channels, *size).transpose(0, 2, 3, 1)
        np.save(path, X.astype(FLAGS.float_type))
        program = Path(__file__).with_name("neural_tangents_entry.py")
        command = [FLAGS.nt_python, str(program), model.removesuffix("_rgb"), str(path), f"--batches={batches}"]
        command += [f"--repeats={repeats}", f"--kernel={which}", f"--pool={pool}"]
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
    """A Markdown table: a line per kernel and number of cores, the ratios, the fraction of the peak."""
    lines = [
        "| kernel | cores | fused | tensorflow (batch) | neural-tangents | tensorflow / fused | "
        "neural-tangents / fused | of peak |",
        "|" + "---|" * 8,
    ]
    for model in FLAGS.models:
        for cores in map(int, FLAGS.cores):
            here = [m for m in measurements if (m["model"], m["cores"]) == (model, cores)]
            by_engine = {
                engine: min((m for m in here if m["engine"] == engine), key=lambda m: m["us_per_entry"], default=None)
                for engine in ("fused", "tensorflow", "neural-tangents")
            }
            fused, ours, peer = by_engine.values()
            cells = [model, str(cores)]
            cells += ["" if m is None else f"{m['us_per_entry']:.1f}" for m in (fused, ours, peer)]
            if ours is not None:
                cells[3] += f" ({ours['batch']})"
            for other in (ours, peer):
                if fused is None or other is None:
                    cells.append("")
                else:
                    cells.append(f"{other['us_per_entry'] / fused['us_per_entry']:.1f}")
            cells.append("" if fused is None else f"{100 * fraction_of_peak(fused):.0f} %")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fraction_of_peak(m: dict[str, Any]) -> float:
    """Counted operations a second against those of multiply-adds in registers on as many cores."""
    return m["operations"] / (1e-6 * m["us_per_entry"]) / (m["cores"] * m["peak"])


def main() -> None:
    """Measure everything, print the table."""
    if FLAGS.measure is not None:
        case = json.loads(FLAGS.measure)
        print(json.dumps(measure(case) if "engine" in case else measure_variants(**case)))
        return
    measurements: list[dict[str, Any]] = []
    for model, cores in product(FLAGS.models, map(int, FLAGS.cores)) if FLAGS.variants else []:
        found = in_a_process({"model": model, "cores": cores})
        measurements += found
        print(report_variants(found), flush=True)
        for m in found if FLAGS.nt_python is not None else []:
            m["peer"] = neural_tangents(model, cores, m["variant"], pooled=m["displacements"] > 1)
            print(report_variants([m]).splitlines()[-1], flush=True)
    for model in [] if FLAGS.variants else FLAGS.models:
        for cores in map(int, FLAGS.cores):
            cases: list[dict[str, Any]] = [{"engine": "tensorflow", "batch": int(batch)} for batch in FLAGS.batches]
            if cores and FLAGS.float_type == "float32":
                cases.insert(0, {"engine": "fused"})
            for case in cases:
                measurements.append(in_a_process({"model": model, "cores": cores, **case}))
                what = ", ".join(map(str, case.values()))
                print(f"{model}, {cores} cores, {what}: {measurements[-1]['us_per_entry']:.1f} us", flush=True)
            if FLAGS.nt_python is not None:
                measurements.append(neural_tangents(model, cores))
                print(f"{model}, {cores} cores, neural-tangents: {measurements[-1]['us_per_entry']:.1f} us", flush=True)
    print(f"\n{FLAGS.float_type}, {'synthetic images' if FLAGS.data_dir is None else 'MNIST'}, {processor()}\n")
    print(report_variants(measurements) if FLAGS.variants else report(measurements))
    if FLAGS.json is not None:
        about = {"software": software(), "processor": processor(), "float_type": FLAGS.float_type}
        Path(FLAGS.json).write_text(json.dumps({**about, "measurements": measurements}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
