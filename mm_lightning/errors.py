"""The one exception for what a user can mend."""


class UserError(ValueError):
    """A mistake of the user's: the message says what is wrong, where, and what to do.

    The command line prints it as one line, without a traceback, and exits with status 2.
    """
