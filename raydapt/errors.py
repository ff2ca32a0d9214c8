"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake of the user, told in one sentence: the setting, the value seen and the way out.

    The command line prints the sentence alone and exits with code 2; every other exception is a fault of
    the program or of the machine and exits with code 1.
    """
