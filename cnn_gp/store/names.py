"""What a run may be called."""

import re

from ..errors import UserError

#: A run's name is that of a folder and of files in the working directory, which hold other things under these names.
_TAKEN = ("results", "claims")
_LONGEST = 100


def checked_run_name(name: str) -> str:
    """
    The name of a run.

    :raises UserError: where it isn't a file's name of letters, digits, ``_``, ``-`` and ``.``.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) or len(name) > _LONGEST or name in _TAKEN:
        shown = name if len(name) <= 60 else f"{name[:50]}... ({len(name)} characters)"
        raise UserError(
            f"The run's name is {shown!r}; expected at most {_LONGEST} letters, digits, '_', '-' and '.', not first a "
            f"'.', and not {' or '.join(_TAKEN)}: give another --run_name."
        )
    return name
