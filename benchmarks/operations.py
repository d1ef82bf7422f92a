"""Floating-point operations: how many a kernel entry takes in the fused engine, how many a core does in a second."""

import time

import numpy as np
from numba import njit

from cnn_gp.engines.fused.program import FUNCTIONS, OPERATIONS, Program
from cnn_gp.engines.fused.simd import WIDTH, fma, load, store

#: Of one position of a nonlinearity in nonlinear.py; a multiply-add counts as two, a root, maximum or selection as one.
OF_FUNCTION = {0: 0, FUNCTIONS["relu"]: 20, FUNCTIONS["step"]: 24, FUNCTIONS["erf"]: 22}


def per_entry(program: Program) -> int:
    """Operations of a pair of images, counted from the program's table, of a kernel without a pool or tangents."""
    total = 0
    for step in program.compiled().code.steps:
        y, x, operation = step["y"], step["x"], step["operation"]
        inputs, outputs = int(y["inputs"] * x["inputs"]), int(y["outputs"] * x["outputs"])
        total += OF_FUNCTION[step["before"]["function"]] * inputs
        total += int(step["addend"] >= 0) * outputs
        if operation == OPERATIONS["input"]:
            total += (2 * program.channels + 1) * outputs
        elif operation == OPERATIONS["conv"]:
            # The sums along x are taken in all rows, those along y where a row comes out; then scale and bias.
            total += int((x["size"] - 1) * y["inputs"] * x["outputs"] + (y["size"] + 1) * outputs)
            total += OF_FUNCTION[step["after"]["function"]] * outputs
        elif operation == OPERATIONS["mean"]:
            total += inputs
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
    """float32 operations a second on one core: multiply-adds in registers, nothing else. Measured."""
    array = np.full(2 * WIDTH, 0.5, np.float32)
    _multiply_add(array, 1)
    n, best = 2_000_000, np.inf
    for _ in range(5):
        start = time.perf_counter()
        _multiply_add(array, n)
        best = min(best, time.perf_counter() - start)
    return 12 * 2 * WIDTH * n / best
