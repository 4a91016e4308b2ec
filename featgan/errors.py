"""The one exception for what a user can mend."""


class UserError(ValueError):
    """One line that says what is wrong, where (file, key, line), and what to do; the command line exits with 2."""
