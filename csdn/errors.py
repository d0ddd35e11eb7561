"""The one error that is shown to a user as text, without a traceback."""

from csdn.safe import printable


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do."""

    def __str__(self) -> str:
        """The message; a name from a drop that is quoted in it cannot steer the terminal that shows it."""
        return printable(super().__str__(), keep="\n")
