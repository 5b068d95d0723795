"""The two ways in which a call can fail that are not a defect: the input, and the machine's storage."""


class InputError(ValueError):
    """The caller gave something that cannot be used; the message says what, its value or shape, and what to do."""


class StorageError(RuntimeError):
    """The cache or a results folder could not be read or written; the message names the folder and the remedy."""
