"""Errors that a user can do something about, under one base."""


class UserError(ValueError):
    """A mistake in what the user gave, or a fault of the machine.

    The text is one line: what is wrong, and what to do. Commands print it and exit with code 1;
    Python callers catch `UserError`, one of the classes below, or `ValueError`.
    """


class ConfigError(UserError):
    """A setting that cannot work, or settings that do not fit each other."""


class OwnEncoderError(ConfigError):
    """An encoder of the user's own is not imported, or its class cannot be used."""


class DataError(UserError):
    """Data that are not there, cannot be read or decoded, or do not fit the settings."""


class CheckpointError(UserError):
    """A checkpoint, run folder or export that cannot be read or written, or does not fit."""


class ProcessLostError(UserError):
    """Another process of the same run failed or is gone."""


def describe(error: BaseException) -> str:
    """Type and text of an exception of other code, on one line and not too long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200].rstrip('.')}"
