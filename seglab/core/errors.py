"""Errors that a user can cause, and interruptions."""

# Set in the environment of a job that a sweep has started: its output goes to a log file.
SWEEP_JOB_VARIABLE = "SEGLAB_JOB"


class InputError(ValueError):
    """Bad input: a file, a config key or an option.

    The message is one line that names the file or the key, says what was expected, and what to
    do next. Everything else that is raised is a bug of seglab's own and keeps its traceback.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, which cluster schedulers send before they kill; handled like Ctrl-C."""
