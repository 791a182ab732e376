"""The one exception that is meant for the user's eyes."""

# Whoever opens a model imports this module first, whatever else it imports later.
import stages.core.process.environment  # noqa: F401


class UserError(ValueError):
    """Something the user can mend: the message names the key or file, its value and what is allowed.

    An entry point prints it as one line and exits with status 1; every other exception is a defect.
    """
