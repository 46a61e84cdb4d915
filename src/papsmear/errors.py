"""What the commands raise for trouble that is not a bug.

    PapsmearError
    ├── UsageError   what was asked for cannot be run as asked: an option, a configuration, a slides.csv,
    │                things that do not fit together. Nothing was begun. Exit status 2.
    ├── InputError   an input or the machine failed on the way: a slide that cannot be read, a shard cut
    │                short, a full disk. What was finished is kept. Exit status 1.
    └── StoppedError a training was told to stop, and goes on when it is started again. Exit status 75.

A message is one line that names the file, the value and the remedy; `main()` prints it without a traceback.
Anything else that escapes a command is a bug of ours and keeps its traceback.
"""

from collections.abc import Iterator


class PapsmearError(Exception):
    """Base of the errors that a user can mend."""

    exit_status = 1


class UsageError(PapsmearError):
    """The request itself is wrong; nothing was begun."""

    exit_status = 2


class InputError(PapsmearError):
    """An input or the machine failed while working; what was finished is kept."""

    exit_status = 1


class StoppedError(PapsmearError):
    """A signal stopped the work, which goes on when it is started again: EX_TEMPFAIL of sysexits.h."""

    exit_status = 75


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, then that which it arose from or hides, and so on: libraries wrap what they did not expect."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
