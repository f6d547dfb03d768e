"""The operators of format strings: each becomes one Python expression over a StreamInfo called ``i``.

Expressions, not functions, because a call costs as much as three operators: Istio's default line takes 1.4 us as one
generated function and 3.6 us as a tuple of getters. Every expression yields bytes. Source: Envoy, "Access logging",
command operators; what Envoy 1.40 accepts was tried out with --mode validate.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.access_log import values
from proxy.access_log.times import MillisecondMemo, TimeFormatError, compile_time_format

if TYPE_CHECKING:
    from proxy.access_log.format import Code


class FormatError(ValueError):
    """A format string that cannot be used; the text names the operator and what is known."""


Build = Callable[["Code", str, "int | None"], str]
"""(code, argument, length) -> expression; an argument or length that was not given is "" or None."""

NONE, OPTIONAL, REQUIRED = range(3)


@dataclass(frozen=True, slots=True)
class Operator:
    """How an operator is built, whether it takes an argument in parentheses, and a length after a colon."""

    build: Build
    argument: int = NONE
    length: bool = False


# --- attributes ---------------------------------------------------------------------------------------------------


def _text(attribute: str) -> Operator:
    """An attribute of bytes, empty or None while unknown."""
    return Operator(lambda code, argument, length: f"i.{attribute} or {code.missing}")


def _number(attribute: str) -> Operator:
    return Operator(lambda code, argument, length: f"{code.bind(values.DECIMAL, 'DECIMAL')}[i.{attribute}]")


def _serial(attribute: str) -> Operator:
    """A number that is hardly ever the same twice."""
    return Operator(lambda code, argument, length: f"b'%d' % i.{attribute}")


def _constant(value: bytes) -> Operator:
    return Operator(lambda code, argument, length: repr(value))


def _function(function: Callable[..., bytes | None], *arguments: object) -> Operator:
    """``function(i, *arguments)``; None is missing."""
    def build(code: Code, argument: str, length: int | None) -> str:
        call = f"{code.bind(function)}({', '.join(['i', *map(repr, arguments)])})"
        return f"{code.missing} if (v := {call}) is None else v"
    return Operator(build)




def _details(code: Code, argument: str, length: int | None) -> str:
    if argument == "ALLOW_WHITESPACES":
        return f"i.details or {code.missing}"
    if argument:
        raise FormatError(f"RESPONSE_CODE_DETAILS option '{argument}' is not known, expected ALLOW_WHITESPACES")
    return f"{code.underscored()}[i.details]"


def _failure_reason(code: Code, argument: str, length: int | None) -> str:
    return f"{code.underscored()}[i.upstream_transport_failure_reason]"


# --- headers ------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r":?[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

_Condition = tuple[str, str]
"""(condition, value): Python source; the value holds when the condition does."""

_PSEUDO: Mapping[str, Mapping[str, _Condition]] = {
    "request_headers": {
        ":method": ("(v := i.method) is not None", "v"),
        ":path": ("(v := i.path) is not None", "v"),
        ":authority": ("(v := i.authority) is not None", "v"),
        "host": ("(v := i.authority) is not None", "v"),
        ":scheme": ("i.request_headers is not None", "i.scheme"),
    },
    "response_headers": {":status": ("i.response_code", "b'%d' % i.response_code")},
    "response_trailers": {},
}


def _header(side: str) -> Operator:
    """``NAME``, or ``NAME?OTHER``: the first value of the first of them that is there, even if it is empty."""
    def build(code: Code, argument: str, length: int | None) -> str:
        names = argument.split("?")
        if len(names) > 2:
            raise FormatError(f"more than one alternative header in '{argument}'")
        chain = ""
        for name in filter(None, names):
            if _TOKEN.fullmatch(name) is None:
                raise FormatError(f"'{name}' is not a header name")
            lower = name.lower()
            condition, value = _PSEUDO[side].get(lower) or (
                f"(f := {code.index(side)}.get({lower.encode()!r})) is not None", "f[1]")
            chain += f"{_cut(value, length)} if {condition} else "
        return chain + code.missing
    return Operator(build, REQUIRED, length=True)


def _cut(expression: str, length: int | None) -> str:
    return expression if length is None else f"({expression})[:{length}]"


def _stream_id(code: Code, argument: str, length: int | None) -> str:
    return f"f[1] if (f := {code.index('request_headers')}.get(b'x-request-id')) is not None else {code.missing}"


# --- time ---------------------------------------------------------------------------------------------------------


def _time(what: str, local: bool) -> Operator:
    """``what`` is an expression of wall-clock seconds."""
    def build(code: Code, argument: str, length: int | None) -> str:
        now = what.replace("NOW", code.bind(values.now)) if "NOW" in what else what
        if not argument:
            memo = code.bind(_LOCAL_MEMO if local else _UTC_MEMO)
            return f"{memo}[{now} * 1000 // 1]"
        try:
            return f"{code.bind(compile_time_format(argument, local))}({now})"
        except TimeFormatError as error:
            raise FormatError(f"time format '{argument}': {error}") from None
    return Operator(build, OPTIONAL)


_UTC_MEMO = MillisecondMemo(local=False)
_LOCAL_MEMO = MillisecondMemo(local=True)

POINTS: Mapping[str, str] = {
    "DS_RX_BEG": "start",
    "DS_RX_END": "last_downstream_rx",
    "US_TX_BEG": "first_upstream_tx",
    "US_TX_END": "last_upstream_tx",
    "US_RX_BEG": "first_upstream_rx",
    "US_RX_END": "last_upstream_rx",
    "DS_TX_END": "last_downstream_tx",
}
"""Points in time of %COMMON_DURATION% -> attribute. Envoy has more: US_CX_BEG, US_CX_END, US_HS_END, DS_TX_BEG."""

_PRECISION = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def _duration(begin: str, end: str) -> Operator:
    return Operator(lambda code, argument, length: _elapsed(code, begin, end, "ms"))


def _elapsed(code: Code, begin: str, end: str, precision: str) -> str:
    """Whole units between two points, rounded down; missing when either is unknown or they are in the wrong order."""
    call = f"{code.bind(values.elapsed)}(i.{begin}, i.{end}, {_PRECISION[precision]})"
    return f"{code.missing} if (v := {call}) is None else v"


def _whole_duration(code: Code, argument: str, length: int | None) -> str:
    # The one duration of every default format; the end never comes before the start.
    return f"{code.bind(values.DECIMAL, 'DECIMAL')}[(i.end - i.start) * 1000 // 1] if i.end else {code.missing}"


def _common_duration(code: Code, argument: str, length: int | None) -> str:
    parts = argument.split(":")
    if len(parts) not in (2, 3):
        raise FormatError(f"invalid common duration configuration: {argument}, expected BEGIN:END[:ms|us|ns]")
    for point in parts[:2]:
        if point not in POINTS:
            raise FormatError(f"point in time '{point}' is not supported, known: {', '.join(POINTS)}")
    precision = parts[2] if len(parts) == 3 else "ms"
    if precision not in _PRECISION:
        raise FormatError(f"invalid common duration precision: {precision}, expected ms, us or ns")
    return _elapsed(code, POINTS[parts[0]], POINTS[parts[1]], precision)


# --- addresses, paths, the rest -----------------------------------------------------------------------------------


def _without_port(attribute: str) -> Operator:
    """The address alone, or with (N) the network of its first N bits."""
    def build(code: Code, argument: str, length: int | None) -> str:
        if argument and not re.fullmatch(r"\d{1,3}", argument):
            raise FormatError(f"mask length '{argument}' is not a number")
        function = values.network if argument else values.host
        extra = f", {int(argument)}" if argument else ""
        return f"{code.bind(function)}(v{extra}) if (v := i.{attribute}) else {code.missing}"
    return Operator(build, OPTIONAL)


def _port(attribute: str) -> Operator:
    return Operator(lambda code, argument, length:
                    f"v.rpartition(b':')[2] if (v := i.{attribute}) else {code.missing}")


# The last attempted host is known even when the connect failed; an upstream connection has a local address.
_REMOTE = "i.upstream_host if i.upstream_local_address else None"


def _upstream_remote(render: Callable[[str], str]) -> Operator:
    return Operator(lambda code, argument, length: f"{render('v')} if (v := {_REMOTE}) else {code.missing}")


def _upstream_remote_without_port(code: Code, argument: str, length: int | None) -> str:
    if argument:
        raise FormatError("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT with a mask length is not supported")
    return f"{code.bind(values.host)}(v) if (v := {_REMOTE}) else {code.missing}"


def _path(code: Code, argument: str, length: int | None) -> str:
    query, _, source = argument.partition(":")
    if query not in ("", "WQ", "NQ"):
        raise FormatError(f"invalid PATH option: '{query}', only 'WQ'/'NQ' are allowed")
    if source not in ("", "ORIG", "PATH", "ORIG_OR_PATH"):
        raise FormatError(f"invalid PATH option: '{source}', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed")
    call = f"{code.bind(values.path)}(i, {query != 'NQ'}, {source or 'ORIG_OR_PATH'!r})"
    return f"{code.missing} if (v := {call}) is None else {_cut('v', length)}"


def _query_parameter(code: Code, argument: str, length: int | None) -> str:
    call = f"{code.bind(values.query_parameter)}(i, {argument.encode()!r})"
    return f"{code.missing} if (v := {call}) is None else {_cut('v', length)}"


def _query_parameters(code: Code, argument: str, length: int | None) -> str:
    if argument not in ("", "ORIG"):
        raise FormatError(f"QUERY_PARAMS option '{argument}' is not supported, expected ORIG")
    return f"{code.missing} if (v := {code.bind(values.query)}(i)) is None else {_cut('v', length)}"


def _server_name(code: Code, argument: str, length: int | None) -> str:
    if argument not in ("", "SNI_ONLY"):
        raise FormatError(f"REQUESTED_SERVER_NAME option '{argument}' is not supported, expected SNI_ONLY")
    return f"i.requested_server_name or {code.missing}"


def _hostname(code: Code, argument: str, length: int | None) -> str:
    return repr(socket.gethostname().encode()) if socket.gethostname() else code.missing


def _environment(code: Code, argument: str, length: int | None) -> str:
    value = os.environb.get(argument.encode())
    return code.missing if value is None else _cut(repr(value), length)


def _log_type(code: Code, argument: str, length: int | None) -> str:
    return "b'DownstreamEnd' if i.protocol else b'TcpConnectionEnd'"


OPERATORS: Mapping[str, Operator] = {
    **{name: _header("request_headers") for name in ("REQ", "REQUEST_HEADER")},
    **{name: _header("response_headers") for name in ("RESP", "RESPONSE_HEADER")},
    **{name: _header("response_trailers") for name in ("TRAILER", "RESPONSE_TRAILER")},
    "START_TIME": _time("i.start_time", local=False),
    "START_TIME_LOCAL": _time("i.start_time", local=True),
    "EMIT_TIME": _time("NOW()", local=False),
    "EMIT_TIME_LOCAL": _time("NOW()", local=True),
    "DURATION": Operator(_whole_duration),
    "REQUEST_DURATION": _duration("start", "last_downstream_rx"),
    "REQUEST_TX_DURATION": _duration("start", "last_upstream_tx"),
    "RESPONSE_DURATION": _duration("start", "first_upstream_rx"),
    "RESPONSE_TX_DURATION": _duration("first_upstream_rx", "last_downstream_tx"),
    "COMMON_DURATION": Operator(_common_duration, REQUIRED),
    "PROTOCOL": _text("protocol"),
    "RESPONSE_CODE": _number("response_code"),
    "RESPONSE_FLAGS": _text("flags"),
    "RESPONSE_FLAGS_LONG": _function(values.long_flags),
    "RESPONSE_CODE_DETAILS": Operator(_details, OPTIONAL),
    "CONNECTION_TERMINATION_DETAILS": _text("termination_details"),
    "BYTES_RECEIVED": _number("bytes_received"),
    "BYTES_SENT": _number("bytes_sent"),
    "REQUEST_HEADERS_BYTES": _function(values.request_headers_bytes),
    "RESPONSE_HEADERS_BYTES": _function(values.response_headers_bytes),
    "RESPONSE_TRAILERS_BYTES": _function(values.response_trailers_bytes),
    "UPSTREAM_HOST": _text("upstream_host"),
    "UPSTREAM_REMOTE_ADDRESS": _upstream_remote(lambda v: v),
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": Operator(_upstream_remote_without_port, OPTIONAL),
    "UPSTREAM_REMOTE_PORT": _upstream_remote(lambda v: f"{v}.rpartition(b':')[2]"),
    "UPSTREAM_LOCAL_ADDRESS": _text("upstream_local_address"),
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": _without_port("upstream_local_address"),
    "UPSTREAM_LOCAL_PORT": _port("upstream_local_address"),
    "UPSTREAM_CLUSTER": _text("upstream_cluster"),
    "UPSTREAM_CLUSTER_RAW": _text("upstream_cluster_raw"),
    "UPSTREAM_TRANSPORT_FAILURE_REASON": Operator(_failure_reason),
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": _number("attempt_count"),
    **{f"DOWNSTREAM_{upper}_ADDRESS{suffix}": make(f"downstream_{upper.lower()}_address")
       for upper in ("LOCAL", "DIRECT_LOCAL", "REMOTE", "DIRECT_REMOTE")
       for suffix, make in (("", _text), ("_WITHOUT_PORT", _without_port))},
    **{f"DOWNSTREAM_{upper}_PORT": _port(f"downstream_{upper.lower()}_address")
       for upper in ("LOCAL", "DIRECT_LOCAL", "REMOTE", "DIRECT_REMOTE")},
    "ROUTE_NAME": _text("route_name"),
    "FILTER_CHAIN_NAME": _text("filter_chain_name"),
    "REQUESTED_SERVER_NAME": Operator(_server_name, OPTIONAL),
    "CONNECTION_ID": _serial("connection_id"),
    "STREAM_ID": Operator(_stream_id),
    "UNIQUE_ID": _function(values.unique_id),
    "HOSTNAME": Operator(_hostname),
    "ENVIRONMENT": Operator(_environment, REQUIRED, length=True),
    "PATH": Operator(_path, OPTIONAL, length=True),
    "QUERY_PARAM": Operator(_query_parameter, REQUIRED, length=True),
    "QUERY_PARAMS": Operator(_query_parameters, OPTIONAL, length=True),
    "ACCESS_LOG_TYPE": Operator(_log_type),
    # Envoy fills it while a local reply's body is rewritten, never for an access log or a header.
    "LOCAL_REPLY_BODY": _constant(b""),
}

_TLS = tuple(
    f"{side}_{part}" for side in ("DOWNSTREAM", "UPSTREAM")
    for part in ("LOCAL_DNS_SAN", "LOCAL_EMAIL_SAN", "LOCAL_IP_SAN", "LOCAL_OTHERNAME_SAN", "LOCAL_SUBJECT",
                 "LOCAL_URI_SAN", "PEER_CERT", "PEER_CERT_V_END", "PEER_CERT_V_START", "PEER_CHAIN_FINGERPRINTS_1",
                 "PEER_CHAIN_FINGERPRINTS_256", "PEER_CHAIN_SERIALS", "PEER_DNS_SAN", "PEER_EMAIL_SAN",
                 "PEER_FINGERPRINT_1", "PEER_FINGERPRINT_256", "PEER_IP_SAN", "PEER_ISSUER",
                 "PEER_ISSUER_FINGERPRINT_256", "PEER_ISSUER_SERIAL", "PEER_OTHERNAME_SAN", "PEER_SERIAL",
                 "PEER_SUBJECT", "PEER_URI_SAN", "TLS_CIPHER", "TLS_GROUP", "TLS_SESSION_ID", "TLS_VERSION"))

UNSUPPORTED = frozenset((
    *_TLS, "BYTES_RETRANSMITTED", "CEL", "COALESCE", "CUSTOM_FLAGS", "DOWNSTREAM_CX_RTT",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE", "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID", "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED", "DOWNSTREAM_HEADER_BYTES_SENT", "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_LOCAL_CLOSE_REASON", "DOWNSTREAM_TRANSPORT_FAILURE_REASON", "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT", "DYNAMIC_METADATA", "FILTER_STATE", "GRPC_STATUS", "GRPC_STATUS_NUMBER",
    "LISTENER_NAME", "METADATA", "ROUNDTRIP_DURATION", "ROUTE_RESOLUTION_COUNT", "ROUTE_RESOLUTION_TIME_US", "SPAN_ID",
    "TLS_JA3_FINGERPRINT", "TLS_JA4_FINGERPRINT", "TRACE_ID", "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED", "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "UPSTREAM_DETECTED_CLOSE_TYPE", "UPSTREAM_FILTER_STATE", "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT", "UPSTREAM_HOSTS_ATTEMPTED", "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAME", "UPSTREAM_HOST_NAMES_ATTEMPTED", "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT", "UPSTREAM_LOCAL_CLOSE_REASON", "UPSTREAM_METADATA", "UPSTREAM_PROTOCOL",
    "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", "UPSTREAM_SERVER_NAME", "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT", "VIRTUAL_CLUSTER_NAME", "XFCC_VALUE",
))
"""Operators of Envoy 1.40 that are refused with a text that says so."""
