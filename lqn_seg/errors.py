"""The one exception for bad input: its message is a sentence a user can act on."""

from __future__ import annotations


class InputError(ValueError):
    """Input from outside (a file, a config key, an argument) is missing or wrong.

    The message is one sentence that names the file or key. Command-line tools print it without a
    traceback and exit with code 2.
    """


class PeerError(InputError):
    """What went wrong in another of the processes that share a job, which has said so itself."""
