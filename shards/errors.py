"""The one exception that stands for a mistake in what the user gave."""


class BadInput(Exception):
    """Bad input or configuration; the message is one clear line with file, key and remedy."""
