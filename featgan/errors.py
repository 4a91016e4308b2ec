"""What ends a command in one line: an error that the user can mend, and a stop that was asked for."""


class UserError(ValueError):
    """One line that says what is wrong, where (file, key, line), and what to do; the command line exits with 2."""


class Stopped(Exception):  # noqa: N818 - no error
    """A run was asked to stop and has saved itself; the same command goes on."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal
