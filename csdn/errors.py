"""The one error that is shown to a user as text, without a traceback."""


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do."""
