"""The one exception that is meant for the user's eyes."""


class UserError(ValueError):
    """Something the user can mend: the message names the key or file, its value and what is allowed.

    An entry point prints it as one line and exits with status 1; every other exception is a defect.
    """
