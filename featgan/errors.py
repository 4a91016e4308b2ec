"""Exceptions that end a command with a one-line message: user errors and interrupted training."""


class UserError(ValueError):
    """An error that the user can fix; the command line prints its message and exits with code 2.

    The message is one line: the file, key or option, then the problem, then the remedy.
    """


class TrainingInterrupted(Exception):  # noqa: N818 - not an error
    """Training was stopped by a signal after saving a checkpoint; running the same command again resumes it."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


class PeerError(UserError):
    """Another process of the same command has failed, and reports the error itself."""


class LostPeerError(UserError):
    """Another process of the same command has ended without a message to the others."""
