"""The one exception that means: the user's input cannot be used, and here is what to do."""


class UserError(ValueError):
    """Bad input from a user. Its text is one sentence naming what is wrong and what to do.

    Entry points print the text and leave with exit code 1; Python callers catch a ValueError.
    """
