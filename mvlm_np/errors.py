"""Errors that a user can mend. Each says, in one line, what is wrong and what to do."""

from collections.abc import Iterable


def some(names: Iterable[str], most: int = 4) -> str:
    """The first few of many names, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class UserError(ValueError):
    """Something outside the program is wrong: a file, a setting, an argument.

    The message is one line made of up to four parts:

        where: found ..., wanted ...; what to do

    `where` names the file and the item in it. The command line prints the message and exits
    with 2; no traceback is needed to understand it.
    """

    def __init__(self, where: object, found: object, wanted: object = None, fix: str | None = None):
        text = f"{where}: {found}"
        if wanted is not None:
            text += f", wanted {wanted}"
        if fix is not None:
            text += f"; {fix}"
        super().__init__(" ".join(text.split()))


class ConfigError(UserError):
    """A model's settings are missing, malformed, or of a kind this engine does not compute."""


class CheckpointError(UserError):
    """A weight file is damaged, hostile, incomplete, or does not fit its config."""


class TokenizerError(UserError):
    """A tokenizer file is missing or is not what it claims to be."""


class NoTokenizer(TokenizerError):
    """A model has no tokenizer. It takes and gives ids all the same."""


class ImageError(UserError):
    """A picture cannot be read, or is not a picture."""


class PromptError(UserError):
    """A question, a history or a template cannot be turned into a prompt that fits the model."""


class PromptTooLong(PromptError):
    """A prompt leaves no room in the model's context.

    positions  that it takes, its pictures included
    context    the model's
    """

    def __init__(self, positions: int, context: int):
        self.positions, self.context = positions, context
        found = f"takes {positions} positions, its pictures included"
        super().__init__(
            "prompt", found, f"fewer than the model's {context}", "shorten the question or the history"
        )


class GenerationError(UserError):
    """A generation setting is out of range, or the model produced numbers that are not numbers."""


class SchemaError(UserError):
    """A JSON schema is malformed, nothing fits it, or it has something that is not supported."""


class MemoryNeeded(UserError):
    """The model does not fit in the memory that is available."""


class GoldenError(UserError):
    """A golden or a candidate cannot be read, or the two have nothing to compare."""


class EvaluationError(UserError):
    """A benchmark's files or answers are missing, or are not what they claim to be."""
