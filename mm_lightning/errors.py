"""The exceptions for what a user can mend, and for input that cannot be read."""


class UserError(ValueError):
    """A mistake of the user's: the message says what is wrong, where, and what to do.

    The command line prints it as one line, without a traceback, and exits with status 2.
    """


class BadInput(Exception):
    """A file or a row that cannot be read, with the reason; the caller names it in a UserError, or skips it."""
