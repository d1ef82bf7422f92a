"""The errors that a user can cause, and the exit status that a script gives them."""


class UserError(Exception):
    """
    Something the user gave cannot be used.

    The message is one line: what was given, what was expected, what to do. Scripts print it on standard error
    without a traceback and end with :attr:`exit_status`.
    """

    exit_status = 1


class InputError(UserError, ValueError):
    """An estimator's parameter, X or y can't be used: scikit-learn expects a ValueError."""


class ShrunkMapError(UserError, ValueError):
    """The network's map would have less than one pixel: it has no kernel (exit status 3)."""

    exit_status = 3
