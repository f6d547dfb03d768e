"""Commands that change something; all of them need POST."""

from __future__ import annotations

from proxy import log
from proxy.admin.console import Console
from proxy.admin.messages import Request, Response, bad_request, ok

LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")
LOGGING_USAGE = ("usage: /logging?<name>=<level> (change single level)\n"
                 "usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n"
                 "usage: /logging?level=<level> (change all levels)\n"
                 "usage: /logging?group=<group_name>:<level> (change group of loggers)\n"
                 f"levels: {' '.join(LEVELS)} \n")


async def handle_healthcheck_fail(console: Console, _request: Request) -> Response:
    """Every response from now on closes its connection; /ready says DRAINING."""
    await console.server.set_health_failed(True)
    return ok()


async def handle_healthcheck_ok(console: Console, _request: Request) -> Response:
    """Undo /healthcheck/fail."""
    await console.server.set_health_failed(False)
    return ok()


async def handle_drain_listeners(console: Console, request: Request) -> Response:
    """Stop listening, at once or after the drain time."""
    await console.server.drain_listeners(inbound_only=request.has("inboundonly"), graceful=request.has("graceful"),
                                         skip_exit=request.has("skip_exit"))
    return ok()


async def handle_quit(console: Console, _request: Request) -> Response:
    """End the process; this reply still goes out."""
    console.server.quit()
    return ok()


async def handle_reset_counters(console: Console, _request: Request) -> Response:
    """Set every counter to 0."""
    await console.reset_counters()
    return ok()


async def handle_reopen_logs(console: Console, _request: Request) -> Response:
    """Open access logs anew by path, as SIGUSR1 does."""
    await console.server.reopen_logs()
    return ok()


async def handle_logging(console: Console, request: Request) -> Response:
    """Show or change log levels."""
    try:
        for component, level in wanted_levels(request.parameters):
            await console.server.set_log_level(component, level)
    except ValueError as error:
        return bad_request(f"error: {error}\n\n{LOGGING_USAGE}{active_loggers()}")
    return Response(200, active_loggers())


def active_loggers() -> str:
    """Each logger with its level."""
    return "active loggers:\n" + "".join(f"  {name}: {level}\n" for name, level in log.levels().items()) + "\n"


def wanted_levels(parameters: tuple[tuple[str, str], ...]) -> list[tuple[str | None, str]]:
    """(logger or None for all, level) for each change that is asked for; all are checked before any is made.

    Raises ValueError with Envoy's text.
    """
    # The home page sends every field of its form.
    filled = [(name, value) for name, value in parameters if value or name not in ("level", "paths")]
    if not filled:
        return []
    if len(filled) > 1:
        raise ValueError("invalid number of parameters")
    name, value = filled[0]
    wanted: list[tuple[str | None, str]]
    if name == "level":
        wanted = [(None, value)]
    elif name == "paths":
        wanted = []
        for item in value.split(","):
            component, _, level = item.partition(":")
            if not component or not level:
                raise ValueError("empty logger name or empty logger level")
            wanted.append((component, level))
    elif name == "group":
        raise ValueError("group parameter requires fine-grain logging to be enabled")
    else:
        wanted = [(name, value)]
    known = log.levels()
    for component_, level in wanted:
        if component_ is not None and component_ not in known:
            raise ValueError("unknown logger name")
        if level not in LEVELS:
            raise ValueError("unknown logger level")
    return wanted
