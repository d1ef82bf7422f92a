"""What a run's parts hold, to compare two of them."""

from pathlib import Path

import h5py


def matrices(folder: Path) -> dict[tuple[str, str], bytes]:
    """Every byte of the matrices, by part and dataset."""
    found = {}
    for part in sorted(folder.glob("K*.h5")):
        with h5py.File(part) as file:
            for row, group in file.items():
                for name, values in group.items():
                    found[part.name, f"{row}/{name}"] = values[()].tobytes()
    return found
