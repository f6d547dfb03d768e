"""What can end a command with an error.

Every such error reaches the shell as status 255: the exit status of the real program for any error of a command.
"""

FAILURE = 255


def reason(error: Exception) -> str:
    """The text of an error without the number and the path that OSError puts there: the caller names the path."""
    return str(getattr(error, "strerror", None) or error)


class AgentError(Exception):
    """A command cannot do what it was asked; the text is for the operator and names the flag, field or file."""


class UsageError(AgentError):
    """The command line itself is wrong."""


class ConfigError(AgentError):
    """The configuration of the pod is wrong: ProxyConfig, annotation, environment variable or file.

    `warnings` came up before and may well explain it.
    """

    warnings: tuple[str, ...] = ()


class ProxyDied(AgentError):
    """The proxy ended although nobody asked it to, or could not be started at all."""
