"""Application log in Envoy's form: components with levels of their own, spdlog patterns, one write a line.

A component's logger is fetched once (``log = get("router")``) and stays the same object when levels change. On a hot
path test its flag first (``if log.debug_on: log.debug(...)``): a disabled line then costs one attribute.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import traceback
from types import TracebackType

from proxy.log_pattern import Record, compile_pattern, escape_c

LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")
_NUMBER = {name: n for n, name in enumerate(LEVELS)} | {"warn": LEVELS.index("warning")}
TRACE, DEBUG, INFO, WARNING, ERROR, CRITICAL, _OFF = range(7)

COMPONENTS = (
    "a2a", "admin", "ai_protocol_manager", "alternate_protocols_cache", "aws", "assert", "backtrace", "basic_auth",
    "cache_filter", "client", "config", "connection", "conn_handler", "compression", "credential_injector",
    "decompression", "dns", "dubbo", "envoy_bug", "ext_authz", "ext_proc", "rocketmq", "file", "filter",
    "forward_proxy", "geolocation", "grpc", "happy_eyeballs", "hc", "health_checker", "http", "http2", "hystrix",
    "init", "io", "jwt", "json_rpc", "kafka", "key_value_store", "lua", "local_rate_limit", "main", "matcher", "mcp",
    "misc", "mongo", "multi_connection", "notification", "oauth2", "quic", "quic_stream", "pool", "rate_limit_quota",
    "rbac", "rds", "redis", "router", "runtime", "stats", "secret", "sse", "tap", "testing", "thrift", "tracing",
    "upstream", "udp", "wasm", "websocket", "golang", "stats_sinks", "dynamic_modules", "ip_tagging",
)
"""Envoy's loggers in the order in which /logging lists them; --component-log-level must accept every one."""

DEFAULT_PATTERN = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v"


class UnknownLevel(ValueError):
    """A level that does not exist; the text is Envoy's."""


class UnknownLogger(ValueError):
    """A component that does not exist; the text is Envoy's."""


class Logger:
    """One component. ``text`` takes %-arguments as in the standard library's logging."""

    __slots__ = ("debug_on", "info_on", "level", "name", "trace_on")

    def __init__(self, name: str) -> None:
        self.name = name
        self.set_level(INFO)

    def set_level(self, level: int) -> None:
        """Index into LEVELS."""
        self.level = level
        self.trace_on = level <= TRACE
        self.debug_on = level <= DEBUG
        self.info_on = level <= INFO

    def trace(self, text: str, *args: object) -> None:
        """Steps of the implementation."""
        if self.level <= TRACE:
            _emit(self.name, TRACE, text, args)

    def debug(self, text: str, *args: object) -> None:
        """What happens to single connections and requests."""
        if self.level <= DEBUG:
            _emit(self.name, DEBUG, text, args)

    def info(self, text: str, *args: object) -> None:
        """Life of the process."""
        if self.level <= INFO:
            _emit(self.name, INFO, text, args)

    def warning(self, text: str, *args: object) -> None:
        """Works, but someone should know."""
        if self.level <= WARNING:
            _emit(self.name, WARNING, text, args)

    def error(self, text: str, *args: object) -> None:
        """Something failed."""
        if self.level <= ERROR:
            _emit(self.name, ERROR, text, args)

    def critical(self, text: str, *args: object) -> None:
        """The process cannot go on, or a defect of the proxy itself."""
        if self.level <= CRITICAL:
            _emit(self.name, CRITICAL, text, args)

    def exception(self, text: str, error: BaseException) -> None:
        """An exception that nobody expected: critical, with traceback (--log-stacktrace-single-entry: one entry)."""
        if self.level > CRITICAL:
            return
        lines = [line for part in format_exception(error) for line in part.rstrip("\n").split("\n")]
        if _sink.single_entry:
            _emit(self.name, CRITICAL, "%s", ("\n".join([text, *lines]),))
        else:
            for line in [text, *lines]:
                _emit(self.name, CRITICAL, "%s", (line,))


def format_exception(error: BaseException) -> list[str]:
    """The lines of a traceback."""
    return traceback.format_exception(type(error), error, error.__traceback__)


class _Sink:
    """Where lines go. A pipe may have no reader: then lines are dropped and counted, never waited for."""

    __slots__ = ("_poll", "dropped", "escaped", "fd", "path", "render", "single_entry")

    def __init__(self) -> None:
        self.fd = 2
        self.path = ""
        self.escaped = False
        self.single_entry = False
        self.dropped = 0
        self.render = compile_pattern(DEFAULT_PATTERN)
        self._poll: select.poll | None = None

    def use(self, fd: int) -> None:
        """Write to this descriptor from now on."""
        self.fd = fd
        self._poll = None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """One line, with its newline."""
        if self.dropped:
            line = b"(%d log lines were lost here: the reader does not keep up)\n" % self.dropped + line
        try:
            if self._poll is None:
                os.write(self.fd, line)
            else:
                # A pipe takes at most PIPE_BUF bytes without waiting and without mixing them with another process's.
                for at in range(0, len(line), select.PIPE_BUF):
                    events = self._poll.poll(0)
                    if not events or not events[0][1] & select.POLLOUT:
                        self.dropped += 1
                        return
                    os.write(self.fd, line[at:at + select.PIPE_BUF])
            self.dropped = 0
        except OSError:
            self.dropped += 1  # there is nowhere left to say it


_loggers = {name: Logger(name) for name in COMPONENTS}
_sink = _Sink()


def get(component: str) -> Logger:
    """The logger of a component; KeyError when Envoy has none of that name."""
    return _loggers[component]


def levels() -> dict[str, str]:
    """Component -> level, in Envoy's order."""
    return {name: LEVELS[logger.level] for name, logger in _loggers.items()}


def parse_level(level: str) -> int:
    """Index into LEVELS; raises UnknownLevel."""
    try:
        return _NUMBER[level]
    except KeyError:
        raise UnknownLevel(f"invalid log level specified '{level}'") from None


def parse_component_levels(text: str) -> dict[str, int]:
    """``upstream:debug,config:trace`` -> component -> index into LEVELS; raises ValueError with Envoy's texts."""
    found: dict[str, int] = {}
    for item in text.split(",") if text else ():
        name, colon, level = item.partition(":")
        if not colon or ":" in level:
            raise ValueError(f"component log level not correctly specified '{item}'")
        number = parse_level(level)
        if name not in _loggers:
            raise UnknownLogger(f"invalid component specified '{name}'")
        found[name] = number
    return found


def set_level(component: str | None, level: str) -> None:
    """Change one component's level, or (None) everyone's; raises UnknownLevel, UnknownLogger."""
    number = parse_level(level)
    if component is not None and component not in _loggers:
        raise UnknownLogger(f"invalid component specified '{component}'")
    for name, logger in _loggers.items():
        if component is None or name == component:
            logger.set_level(number)


def configure(level: str = "info", component_levels: str = "", pattern: str = DEFAULT_PATTERN, escaped: bool = False,
              path: str = "", single_entry: bool = False) -> None:
    """Apply the command line; raises ValueError (level, component, pattern) and OSError (path)."""
    overrides = parse_component_levels(component_levels)
    render = compile_pattern(pattern)
    if path:
        _sink.use(_open(path))
    else:
        _sink.use(2)
    _sink.path = path
    _sink.render = render
    _sink.escaped = escaped
    _sink.single_entry = single_entry
    set_level(None, level)
    for name, number in overrides.items():
        _loggers[name].set_level(number)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def reopen() -> None:
    """Open --log-path anew after a rotation; a path that cannot be opened keeps the old file. Raises OSError."""
    if _sink.path:
        old = _sink.fd
        _sink.use(_open(_sink.path))
        os.close(old)


def descriptors() -> set[int]:
    """Descriptors that the log needs."""
    return {_sink.fd}


def _emit(name: str, level: int, text: str, args: tuple[object, ...]) -> None:
    if args:
        text = text % args
    if _sink.escaped:
        text = escape_c(text)
    frame = sys._getframe(2)  # the caller of the Logger method
    record = Record(LEVELS[level], name, text, frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
    _sink.write(_sink.render(record).encode("utf-8", "surrogateescape") + b"\n")


def log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A sys.excepthook that writes through the log."""
    if error.__traceback__ is None:
        error = error.with_traceback(trace)
    get("main").exception("uncaught exception", error)
