"""The one exception for what a user can get wrong."""


class UserError(ValueError):
    """Says in one line what was given, what is valid and what to do.

    The scripts in ``tools/`` print it without a traceback and exit with code 2.
    """
