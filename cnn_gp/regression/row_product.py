"""
What a row of tiles adds to the product of a symmetric matrix with a few vectors.

The row is used twice, as it is and transposed. BLAS needs its entries in float64 and two passes over them, and is made
for more vectors than ten; here one pass over the entries does both (benchmarks/README.md).
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

#: Rows, columns and right sides that are used at a time: the entries in float64 stay in the processor's first cache,
#: the vectors in the second.
_ROWS, _COLUMNS, _RIGHT_SIDES = 4, 1024, 32

#: From one row or right side to the next in a buffer: at a power of two apart they would share few places of the first
#: cache and drive each other out.
_STRIDE = _COLUMNS + 8


def piece_width(n_max: int) -> int:
    """Columns of whole tiles, ``n_max`` wide, that are read and multiplied at a time."""
    return n_max * max(1, _COLUMNS // n_max)


def row_product(B: np.ndarray, entries: np.ndarray, n_max: int) -> np.ndarray:
    """
    What one row of tiles, and its transpose right of the diagonal, add to a product: [M, m] float64 from its row on.

    :param B: [N, m] float64 from its row on, for the first N columns, N at least the rows and at most M.
    :param entries: [rows, M] from the diagonal on; float32 and float64 aren't converted.
    :param n_max: the tiles' width, which decides in which order is summed.
    """
    total, width = np.zeros((entries.shape[1], B.shape[1])), piece_width(n_max)
    for left in range(0, entries.shape[1], width):
        add_piece(B, left, entries[:, left : left + width], total)
    return total


def add_piece(B: np.ndarray, left: int, entries: np.ndarray, total: np.ndarray) -> None:
    """
    Add to ``total``, [M, m], what some columns of a row of tiles add to :func:`row_product`.

    It runs in the thread that calls it, without Python's lock.

    :param left: the first of the columns, from the diagonal on.
    :param entries: [rows, columns]
    """
    if entries.dtype not in (np.float32, np.float64):
        entries = entries.astype(np.float64)
    _add_piece(np.ascontiguousarray(B), left, _block(entries), entries.shape[1], total)


def _block(entries: np.ndarray) -> np.ndarray:
    """
    An array without gaps, as the loops below take it, whose first columns are the entries [rows, columns].

    Of some columns of a wider array it has the rows up to the next row's beginning: a copy takes up to a sixth of the
    product's time. Only the entries may be read: behind the last of them memory may end.
    """
    n_rows, n_columns = entries.shape
    step, distance = divmod(entries.strides[0], entries.itemsize)
    if entries.flags.c_contiguous or entries.strides[1] != entries.itemsize or distance or step < n_columns:
        return np.ascontiguousarray(entries)
    return np.lib.stride_tricks.as_strided(entries, (n_rows, step), (step * entries.itemsize, entries.itemsize))


def _compiled(function: Callable) -> Any:
    """Compile at the first call, without Python's lock, and keep the machine code on disk where Numba finds a place."""
    # Sums of products may be added up in any order and fused, as BLAS does; LLVM makes vectors of them only so.
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "nsz", "contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither the package's folder nor a home can be written to. It takes seconds in each process then.
        return numba.njit(**options)(function)


@_compiled
def _add_piece(B: np.ndarray, first: int, entries: np.ndarray, M: int, total: np.ndarray) -> None:
    n, (N, m) = len(entries), B.shape
    # Rows past the last one are zeros.
    four = np.zeros(_ROWS * _STRIDE)
    own = np.zeros((n + _ROWS, m))
    own[:n] = B[:n]
    sums = np.zeros((n + _ROWS, m))
    right_sides, transposed = np.empty((_RIGHT_SIDES, _STRIDE)), np.empty((_RIGHT_SIDES, _STRIDE))
    for left in range(0, M, _COLUMNS):
        width = min(_COLUMNS, M - left)
        for first_side in range(0, m, _RIGHT_SIDES):
            sides = min(_RIGHT_SIDES, m - first_side)
            for j in range(width):
                row = first + left + j
                for c in range(sides):
                    right_sides[c, j] = B[row, first_side + c] if row < N else 0.0
                    transposed[c, j] = 0.0
            for i in range(0, n, _ROWS):
                for r in range(_ROWS):
                    if i + r < n:
                        _convert(entries[i + r, left : left + width], four[r * _STRIDE :])
                    else:
                        four[r * _STRIDE : (r + 1) * _STRIDE] = 0.0
                for c in range(sides):
                    side = first_side + c
                    _four_rows(four, right_sides[c, :width], transposed[c, :width], own[i:, side], sums[i:, side])
            for j in range(max(n - first - left, 0), width):
                for c in range(sides):
                    total[first + left + j, first_side + c] += transposed[c, j]
    total[:n] += sums[:n]


@_compiled
def _convert(entries: np.ndarray, converted: np.ndarray) -> None:
    for j in range(len(entries)):
        converted[j] = entries[j]


@_compiled
def _four_rows(
    four: np.ndarray, right_side: np.ndarray, transposed: np.ndarray, own: np.ndarray, sums: np.ndarray
) -> None:
    """The product of four rows with one vector is added to ``sums``, that of their transpose to ``transposed``."""
    own0, own1, own2, own3 = own[0], own[1], own[2], own[3]
    sum0 = sum1 = sum2 = sum3 = 0.0
    for j in range(len(right_side)):
        # At constant distances from each other, so that LLVM needn't ask for each whether it overlaps the result.
        entry0, entry1 = four[j], four[_STRIDE + j]
        entry2, entry3 = four[2 * _STRIDE + j], four[3 * _STRIDE + j]
        value = right_side[j]
        sum0 += entry0 * value
        sum1 += entry1 * value
        sum2 += entry2 * value
        sum3 += entry3 * value
        transposed[j] += entry0 * own0 + entry1 * own1 + entry2 * own2 + entry3 * own3
    sums[0] += sum0
    sums[1] += sum1
    sums[2] += sum2
    sums[3] += sum3
