"""What a run may be called."""

import re

from ..errors import UserError

#: A run's name is that of a folder and of files in the working directory, which holds the results under this name.
#: random_search.csv and comparisons.csv are the report's.
_TAKEN = ("results", "random_search", "comparisons")
#: The view of a run x is x.h5, its learning curve x_learning_curve.csv, where a run x_learning_curve has its errors.
_ENDS_TAKEN = (".h5", "_learning_curve")
_LONGEST = 100


def checked_run_name(name: str) -> str:
    """
    The name of a run: a file name of at most 100 letters, digits, "_", "-" and ".".

    :raises UserError: where it isn't one, begins with ".", or is that of another file.
    """
    is_file_name = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) and len(name) <= _LONGEST
    if not is_file_name or name.lower() in _TAKEN or name.lower().endswith(_ENDS_TAKEN):
        shown = name if len(name) <= 60 else f"{name[:50]}... ({len(name)} characters)"
        raise UserError(
            f"The run's name is {shown!r}; expected at most {_LONGEST} letters, digits, '_', '-' and '.', no '.' in "
            f"front, no {' or '.join(_ENDS_TAKEN)} at the end, and not {' or '.join(_TAKEN)}: give another --run_name."
        )
    return name
