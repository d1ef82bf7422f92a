"""Floating-point operations: how many a kernel entry takes in the fused engine, how many a core does in a second."""

import time

import numpy as np
from numba import njit

from cnn_gp.engines.fused.engine import all_codes
from cnn_gp.engines.fused.program import FUNCTIONS, OPERATIONS, Program
from cnn_gp.engines.fused.simd import WIDTH, fma, load, store

#: Of one position of a nonlinearity in nonlinear.py; a multiply-add counts as two, a root, maximum or selection as one.
OF_FUNCTION = {0: 0, FUNCTIONS["relu"]: 20, FUNCTIONS["step"]: 24, FUNCTIONS["erf"]: 22}

#: The same with a tangent: its slope, and the tangent times it.
OF_FUNCTION_AND_SLOPE = {0: 0, FUNCTIONS["relu"]: 39, FUNCTIONS["erf"]: 37}


def per_entry(program: Program) -> int:
    """Operations of a pair of images, counted from the program's tables, at all displacements of its pools."""
    tables = [code.steps for code in all_codes(program)]
    return sum(_of_step(step, program) for steps in tables for step in steps)


def _of_step(step: np.void, program: Program) -> int:
    maps, of_function = (2, OF_FUNCTION_AND_SLOPE) if program.ntk else (1, OF_FUNCTION)
    y, x, operation = step["y"], step["x"], step["operation"]
    inputs, outputs = int(y["inputs"] * x["inputs"]), int(y["outputs"] * x["outputs"])
    total = of_function[step["before"]["function"]] * inputs + of_function[step["after"]["function"]] * outputs
    total += maps * int(step["addend"] >= 0) * outputs
    if operation == OPERATIONS["input"]:
        total += (2 * program.channels + 1) * outputs
    elif operation == OPERATIONS["conv"]:
        # The sums along x are taken in all rows, those along y where a row comes out; then scale and bias.
        total += maps * int((x["size"] - 1) * y["inputs"] * x["outputs"] + (y["size"] + 1) * outputs)
    elif operation == OPERATIONS["pool within"]:
        total += maps * int(y["size"] * x["size"]) * outputs
    elif operation in (OPERATIONS["mean"], OPERATIONS["pool"]):
        total += maps * (2 if operation == OPERATIONS["pool"] else 1) * inputs
    return total


@njit
def _multiply_add(array: np.ndarray, n: int) -> None:
    # Twelve chains of their own hide the latency of 4 cycles on two ports.
    x, y = load(array, 0), load(array, WIDTH)
    a, b, c, d, e, f = x, x, x, x, x, x
    g, h, i, j, k, m = y, y, y, y, y, y
    for _ in range(n):
        a, b, c, d, e, f = fma(a, x, y), fma(b, x, y), fma(c, x, y), fma(d, x, y), fma(e, x, y), fma(f, x, y)
        g, h, i, j, k, m = fma(g, x, y), fma(h, x, y), fma(i, x, y), fma(j, x, y), fma(k, x, y), fma(m, x, y)
    store(array, 0, a + b + c + d + e + f + g + h + i + j + k + m)


def peak() -> float:
    """float32 operations a second of processor time on one core, measured: multiply-adds in registers, nothing else."""
    array = np.full(2 * WIDTH, 0.5, np.float32)
    _multiply_add(array, 1)
    n, best = 2_000_000, np.inf
    for _ in range(5):
        start = time.process_time()
        _multiply_add(array, n)
        best = min(best, time.process_time() - start)
    return 12 * 2 * WIDTH * n / best
