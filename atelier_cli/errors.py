"""What ends a command, as a sentence and an exit code.

| code | meaning |
|---|---|
| 0 | done |
| 1 | failed: a task failed, a request was refused, a process did not start |
| 2 | wrong use of the command |
| 3 | no mesh runs on the folder, or its gateway cannot be reached |
| 4 | the token is missing, expired, or lacks a scope |
| 5 | `doctor` found that something needed is missing |
| 130 | interrupted by Ctrl-C |
"""

import enum


class ExitCode(enum.IntEnum):
    """The exit codes of `atelier`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_ALLOWED = 4
    MISSING = 5
    INTERRUPTED = 130


class CliError(Exception):
    """A failure that is shown to the user as one sentence."""

    def __init__(self, sentence: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code
