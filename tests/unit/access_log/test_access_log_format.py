"""Format strings: every operator, the rules for missing and empty values, and what is refused.

Expected values are what Envoy 1.40 printed for the same requests and formats.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access_log.format import FormatError, compile_format
from proxy.access_log.operators import OPERATORS, UNSUPPORTED
from proxy.http.headers import Headers
from proxy.stream_info import StreamInfo

ISTIO = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)


def stream(**fields: Any) -> StreamInfo:
    """A stream of which nothing is known but ``fields``."""
    info = StreamInfo()
    values: dict[str, Any] = {name: None for name in StreamInfo.__annotations__ if not hasattr(StreamInfo, name) or
                              name in StreamInfo.__slots__}
    values.update(start_time=1795237001.515197, start=100.0, end=100.0055, response_code=0, flags=b"", bytes_received=0,
                  bytes_sent=0, attempt_count=0, scheme=b"http", local_reply_body=b"", connection_id=7)
    values.update(fields)
    for name, value in values.items():
        setattr(info, name, value)
    return info


def request(**fields: Any) -> StreamInfo:
    """A request that was answered by an upstream."""
    headers = [(b"x-a", b"abc"), (b"x-b", b"B"), (b"x-b", b"second"), (b"x-empty", b""), (b"user-agent", b"ua x"),
               (b"x-request-id", b"31a6a830-976a-4bbf-9926-5dbe3d3bee93")]
    return stream(**{
        "method": b"GET", "path": b"/a%20b?x=1&y=&x=2&z=%41", "authority": b"h.com:80", "protocol": b"HTTP/1.1",
        "request_headers": Headers.of(headers),
        "response_headers": Headers.of([(b"x-up", b"a"), (b"x-up", b"b"), (b"x-envoy-upstream-service-time", b"5")]),
        "response_code": 200, "details": b"via_upstream", "bytes_sent": 5, "attempt_count": 1,
        "last_downstream_rx": 100.0001, "first_upstream_tx": 100.0004, "last_upstream_tx": 100.0005,
        "first_upstream_rx": 100.0053, "last_upstream_rx": 100.0054, "last_downstream_tx": 100.0055,
        "route_name": b"r one", "filter_chain_name": b"fc", "upstream_host": b"127.0.0.1:37361",
        "upstream_cluster": b"alt", "upstream_cluster_raw": b"up:one", "upstream_local_address": b"127.0.0.1:46984",
        "downstream_local_address": b"127.0.0.1:19995", "downstream_direct_local_address": b"127.0.0.1:15001",
        "downstream_remote_address": b"[2001:db8::7]:33314", "downstream_direct_remote_address": b"10.1.2.3:33314",
        **fields})


def rendered(text: str, info: StreamInfo) -> str:
    return compile_format(text)(info).decode()


@pytest.mark.parametrize(("text", "expected"), [
    ("%REQ(x-a)%", "abc"),
    ("%REQ(X-A)%", "abc"),
    ("%REQUEST_HEADER(x-a)%", "abc"),
    ("%REQ(x-b)%", "B"),
    ("%REQ(x-a?x-b)%", "abc"),
    ("%REQ(nope?x-b)%", "B"),
    ("%REQ(x-empty?x-b)%", ""),
    ("%REQ(nope?)%", "-"),
    ("%REQ(?x-a)%", "abc"),
    ("%REQ(x-a):2%", "ab"),
    ("%REQ(x-a):0%", ""),
    ("%REQ(x-a):100%", "abc"),
    ("%REQ(nope):3%", "-"),
    ("%REQ(:METHOD)%", "GET"),
    ("%REQ(:METHOD):1%", "G"),
    ("%REQ(:PATH)%", "/a%20b?x=1&y=&x=2&z=%41"),
    ("%REQ(:AUTHORITY)%", "h.com:80"),
    ("%REQ(HOST)%", "h.com:80"),
    ("%REQ(:SCHEME)%", "http"),
    ("%REQ(PATH)%", "-"),
    ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "/a%20b?x=1&y=&x=2&z=%41"),
    ("%RESP(x-up)%", "a"),
    ("%RESPONSE_HEADER(x-up)%", "a"),
    ("%RESP(:STATUS)%", "200"),
    ("%TRAILER(x)%", "-"),
    ("%RESPONSE_TRAILER(x)%", "-"),
    ("%START_TIME%", "2026-11-21T04:56:41.515Z"),
    ("%START_TIME()%", "2026-11-21T04:56:41.515Z"),
    ("%DURATION%", "5"),
    ("%REQUEST_DURATION%", "0"),
    ("%REQUEST_TX_DURATION%", "0"),
    ("%RESPONSE_DURATION%", "5"),
    ("%RESPONSE_TX_DURATION%", "0"),
    ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END)%", "5"),
    ("%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)%", "5300"),
    ("%COMMON_DURATION(DS_TX_END:DS_RX_BEG:us)%", "-"),
    ("%PROTOCOL%", "HTTP/1.1"),
    ("%RESPONSE_CODE%", "200"),
    ("%RESPONSE_FLAGS%", "-"),
    ("%RESPONSE_FLAGS_LONG%", "-"),
    ("%RESPONSE_CODE_DETAILS%", "via_upstream"),
    ("%CONNECTION_TERMINATION_DETAILS%", "-"),
    ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "-"),
    ("%BYTES_RECEIVED% %BYTES_SENT%", "0 5"),
    ("%RESPONSE_TRAILERS_BYTES%", "0"),
    ("%UPSTREAM_HOST%", "127.0.0.1:37361"),
    ("%UPSTREAM_REMOTE_ADDRESS%", "127.0.0.1:37361"),
    ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "127.0.0.1"),
    ("%UPSTREAM_REMOTE_PORT%", "37361"),
    ("%UPSTREAM_LOCAL_ADDRESS%", "127.0.0.1:46984"),
    ("%UPSTREAM_LOCAL_PORT%", "46984"),
    ("%UPSTREAM_CLUSTER%", "alt"),
    ("%UPSTREAM_CLUSTER_RAW%", "up:one"),
    ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "1"),
    ("%DOWNSTREAM_LOCAL_ADDRESS%", "127.0.0.1:19995"),
    ("%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%", "127.0.0.1:15001"),
    ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "127.0.0.1"),
    ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(16)%", "127.0.0.0/16"),
    ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(33)%", "127.0.0.1/32"),
    ("%DOWNSTREAM_REMOTE_ADDRESS%", "[2001:db8::7]:33314"),
    ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "2001:db8::7"),
    ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(32)%", "2001:db8::/32"),
    ("%DOWNSTREAM_REMOTE_PORT%", "33314"),
    ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(8)%", "10.0.0.0/8"),
    ("%ROUTE_NAME%", "r one"),
    ("%FILTER_CHAIN_NAME%", "fc"),
    ("%REQUESTED_SERVER_NAME%", "-"),
    ("%CONNECTION_ID%", "7"),
    ("%STREAM_ID%", "31a6a830-976a-4bbf-9926-5dbe3d3bee93"),
    ("%HOSTNAME%", socket.gethostname()),
    ("%PATH%", "/a%20b?x=1&y=&x=2&z=%41"),
    ("%PATH(NQ)%", "/a%20b"),
    ("%PATH(NQ):3%", "/a%"),
    ("%PATH(WQ:ORIG)%", "-"),
    ("%PATH(NQ:ORIG_OR_PATH)%", "/a%20b"),
    ("%QUERY_PARAM(x)%", "1"),
    ("%QUERY_PARAM(y)%", ""),
    ("%QUERY_PARAM(z)%", "A"),
    ("%QUERY_PARAM(nope)%", "-"),
    ("%QUERY_PARAMS%", "x=1&y=&x=2&z=%41"),
    ("%QUERY_PARAMS(ORIG)%", "x=1&y=&x=2&z=%41"),
    ("%ACCESS_LOG_TYPE%", "DownstreamEnd"),
    ("%LOCAL_REPLY_BODY%", ""),
    ("%%", "%"),
    ("100%% %PROTOCOL%%%", "100% HTTP/1.1%"),
    ("", ""),
    ("plain {text} %%b é\n", "plain {text} %b é\n"),
])
def test_operator(text: str, expected: str) -> None:
    assert rendered(text, request()) == expected


def test_header_sizes_are_names_and_values_with_the_pseudo_headers() -> None:
    info = request(request_headers=Headers.of([
        (b"host", b"h.com:80"), (b"x-a", b"abc"), (b"x-b", b"B"), (b"x-forwarded-proto", b"http"),
        (b"x-request-id", b"31a6a830-976a-4bbf-9926-5dbe3d3bee93"), (b"x-envoy-expected-rq-timeout-ms", b"15000")]))
    assert rendered("%REQUEST_HEADERS_BYTES%", info) == "181"
    assert rendered("%RESPONSE_HEADERS_BYTES%", stream(response_code=503)) == "10"
    assert rendered("%RESPONSE_HEADERS_BYTES%", stream()) == "0"


def test_rewritten_path() -> None:
    info = request(path=b"/new?x=%zz+b%20c")
    assert info.request_headers is not None
    info.request_headers.add(b"x-envoy-original-path", b"/old?q")
    got = rendered("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PATH% %PATH(NQ:ORIG)% %PATH(NQ:PATH)% %QUERY_PARAM(x)%", info)
    assert got == "/old?q /old?q /old /new %zz+b c"


@pytest.mark.parametrize(("path", "query"),
                         [(b"/x", "-"), (b"/x?", ""), (b"/x?x", "x"), (b"/x?x=a=b&x=;c", "x=a=b&x=;c")])
def test_query(path: bytes, query: str) -> None:
    assert rendered("%QUERY_PARAMS%", request(path=path)) == query


def test_whitespace_of_details_and_failure_reasons() -> None:
    info = stream(details=b"a b\tc", upstream_transport_failure_reason=b"delayed connect error: 111")
    assert rendered("%RESPONSE_CODE_DETAILS%", info) == "a_b_c"
    assert rendered("%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%", info) == "a b\tc"
    assert rendered("%UPSTREAM_TRANSPORT_FAILURE_REASON%", info) == "delayed_connect_error:_111"


def test_flags_keep_their_order() -> None:
    info = stream(flags=b"UF,URX")
    assert rendered("%RESPONSE_FLAGS%", info) == "UF,URX"
    assert rendered("%RESPONSE_FLAGS_LONG%", info) == "UpstreamConnectionFailure,UpstreamRetryLimitExceeded"


def test_a_failed_connect_has_a_host_but_no_remote_address() -> None:
    info = stream(upstream_host=b"127.0.0.1:1")
    got = rendered("%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_REMOTE_PORT% %UPSTREAM_LOCAL_PORT%", info)
    assert got == "127.0.0.1:1 - - -"


def test_bytes_of_headers_pass_unchanged() -> None:
    """Envoy escapes nothing in a text format; its codec lets no control character but the tab through."""
    info = request(request_headers=Headers.of([(b"x-a", b'a\tb\xc3\xa9\xff"\\')]))
    assert compile_format("%REQ(x-a)%|%REQ(x-a):4%")(info) == b'a\tb\xc3\xa9\xff"\\|a\tb\xc3'


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCESS_LOG_TEST", "'value'")
    assert rendered("%ENVIRONMENT(ACCESS_LOG_TEST)%:%ENVIRONMENT(ACCESS_LOG_TEST):3%", stream()) == "'value':'va"
    assert rendered("%ENVIRONMENT(ACCESS_LOG_NO_SUCH)%", stream()) == "-"


def test_unique_id_is_a_new_uuid_for_every_line() -> None:
    one, other = rendered("%UNIQUE_ID% %UNIQUE_ID%", stream()).split(" ")
    assert one != other
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", one)


def test_emit_time_is_now() -> None:
    pattern = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z 20\d\d-.*[+-]\d{4} \d{10,}"
    assert re.fullmatch(pattern, rendered("%EMIT_TIME% %EMIT_TIME_LOCAL% %EMIT_TIME(%s)%", stream()))


# --- lines of the facts' golden traces --------------------------------------------------------------------------------


def test_istio_line_of_an_answered_request() -> None:
    info = request(path=b"/a?b=1", details=b"via_upstream", bytes_sent=2, end=100.0012, authority=b"h.com",
                   request_headers=Headers.of([(b"x-forwarded-for", b"1.1.1.1"), (b"user-agent", b"ua x"),
                                               (b"x-request-id", b"ID")]),
                   response_headers=Headers.of([(b"x-envoy-upstream-service-time", b"0")]),
                   upstream_host=b"127.0.0.1:20500", upstream_cluster_raw=b"u",
                   upstream_local_address=b"127.0.0.1:4000", downstream_local_address=b"127.0.0.1:20001",
                   downstream_remote_address=b"1.1.1.1:0", route_name=None)
    assert rendered(ISTIO, info) == (
        '[2026-11-21T04:56:41.515Z] "GET /a?b=1 HTTP/1.1" 200 - via_upstream - "-" 0 2 1 0 "1.1.1.1" "ua x" "ID" '
        '"h.com" "127.0.0.1:20500" u 127.0.0.1:4000 127.0.0.1:20001 1.1.1.1:0 - -\n')


def test_istio_line_of_an_unknown_cluster() -> None:
    info = request(path=b"/none", response_code=503, flags=b"NC", details=b"cluster_not_found", bytes_sent=0,
                   end=100.0004, authority=b"h.com", request_headers=Headers.of([(b"x-request-id", b"ID")]),
                   response_headers=Headers.of([]), upstream_host=None, upstream_cluster_raw=None,
                   upstream_local_address=None, downstream_local_address=b"127.0.0.1:20001",
                   downstream_remote_address=b"127.0.0.1:5000", route_name=b"r none")
    assert rendered(ISTIO, info) == (
        '[2026-11-21T04:56:41.515Z] "GET /none HTTP/1.1" 503 NC cluster_not_found - "-" 0 0 0 - "-" "-" "ID" "h.com" '
        '"-" - - 127.0.0.1:20001 127.0.0.1:5000 - r none\n')


def test_istio_line_of_a_tcp_connection() -> None:
    info = stream(bytes_received=31, bytes_sent=63, end=100.3025, upstream_host=b"127.0.0.1:20500",
                  upstream_cluster_raw=b"u", upstream_local_address=b"127.0.0.1:6000",
                  downstream_local_address=b"127.0.0.1:20007", downstream_remote_address=b"127.0.0.1:7000")
    assert rendered(ISTIO, info) == (
        '[2026-11-21T04:56:41.515Z] "- - -" 0 - - - "-" 31 63 302 - "-" "-" "-" "-" "127.0.0.1:20500" u '
        "127.0.0.1:6000 127.0.0.1:20007 127.0.0.1:7000 - -\n")


def test_codec_error_shows_no_method_path_or_scheme() -> None:
    info = stream(protocol=b"HTTP/1.1", response_code=400, flags=b"DPE", details=b"http1.codec_error")
    got = rendered('"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%" %REQ(:SCHEME)% %PATH% %REQUEST_HEADERS_BYTES%', info)
    assert got == '"- - HTTP/1.1" - - 0'


def formats_in(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, child in value.items():
            if key == "inline_string" and isinstance(child, str) and "%" in child:
                yield child
            yield from formats_in(child)
    elif isinstance(value, list):
        for child in value:
            yield from formats_in(child)


def test_formats_of_recorded_configurations(shared: Path) -> None:
    found: set[str] = set()
    for path in sorted((shared / "istio/config").glob("*/static.json")):
        found.update(formats_in(json.loads(path.read_text())))
    assert ISTIO in found
    for text in found:
        assert compile_format(text)(request())


# --- missing values ---------------------------------------------------------------------------------------------------

ARGUMENT = {"REQ": "(x)", "REQUEST_HEADER": "(x)", "RESP": "(x)", "RESPONSE_HEADER": "(x)", "TRAILER": "(x)",
            "RESPONSE_TRAILER": "(x)", "COMMON_DURATION": "(DS_RX_BEG:US_RX_BEG)", "ENVIRONMENT": "(NO_SUCH_NAME)",
            "QUERY_PARAM": "(x)"}
NEVER_MISSING = {"START_TIME", "START_TIME_LOCAL", "EMIT_TIME", "EMIT_TIME_LOCAL", "RESPONSE_CODE", "BYTES_RECEIVED",
                 "BYTES_SENT", "REQUEST_HEADERS_BYTES", "RESPONSE_HEADERS_BYTES", "RESPONSE_TRAILERS_BYTES",
                 "UPSTREAM_REQUEST_ATTEMPT_COUNT", "CONNECTION_ID", "UNIQUE_ID", "HOSTNAME", "ACCESS_LOG_TYPE",
                 "LOCAL_REPLY_BODY", "DURATION"}


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_what_a_new_stream_does_not_know_is_missing(name: str) -> None:
    """Formats of request headers run before anything but the request is known."""
    formatter = compile_format(f"%{name}{ARGUMENT.get(name, '')}%", b"<none>")
    assert (formatter(stream()) == b"<none>") == (name not in NEVER_MISSING)


@pytest.mark.parametrize("end", [None, 0.0])
def test_duration_before_the_end_is_missing(end: float | None) -> None:
    assert compile_format("%DURATION%", b"")(stream(end=end)) == b""


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "error"), [
    ("%FOO%", "unknown operator FOO, known: ACCESS_LOG_TYPE, BYTES_RECEIVED"),
    ("%VIRTUAL_HOST%", "unknown operator VIRTUAL_HOST"),
    ("%DYNAMIC_METADATA(a:b)%", "operator DYNAMIC_METADATA is not supported yet, supported: ACCESS_LOG_TYPE"),
    ("%REQ%", "REQ requires parameters"),
    ("%REQ()%", "REQ requires parameters"),
    ("%QUERY_PARAM%", "QUERY_PARAM requires parameters"),
    ("a%REQ(A", "couldn't find valid command at position 1"),
    ("%REQ(A)", "couldn't find valid command at position 0"),
    ("%REQ(A):%", "couldn't find valid command at position 0"),
    ("%REQ(A):x%", "couldn't find valid command at position 0"),
    ("%REQ(A):-1%", "couldn't find valid command at position 0"),
    ("%REQ(A):3%%", "couldn't find valid command at position 10"),
    ("100%", "couldn't find valid command at position 3"),
    ("% %", "couldn't find valid command at position 0"),
    ("%req(a)%", "couldn't find valid command at position 0"),
    ("%REQ(A?B?C)%", "%REQ(A?B?C)%: more than one alternative header in 'A?B?C'"),
    ("%REQ(A B)%", "'A B' is not a header name"),
    ("%REQ(a\nb)%", "is not a header name"),
    ("%PROTOCOL:3%", "PROTOCOL does not take any parameters or length"),
    ("%PROTOCOL(x)%", "PROTOCOL does not take any parameters or length"),
    ("%START_TIME:3%", "START_TIME does not allow length to be specified"),
    ("%START_TIME(%Q)%", "unknown conversion '%Q'"),
    ("%START_TIME(%0f)%", "unknown conversion '%0'"),
    ("%START_TIME(x%)%", "'%' at the end"),
    ("%COMMON_DURATION(DS_RX_BEG)%", "invalid common duration configuration: DS_RX_BEG"),
    ("%COMMON_DURATION(FOO:DS_TX_END)%", "point in time 'FOO' is not supported, known: DS_RX_BEG"),
    ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:s)%", "invalid common duration precision: s"),
    ("%RESPONSE_CODE_DETAILS(X)%", "option 'X' is not known, expected ALLOW_WHITESPACES"),
    ("%PATH(X)%", "invalid PATH option: 'X', only 'WQ'/'NQ' are allowed"),
    ("%PATH(WQ:X)%", "invalid PATH option: 'X', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed"),
    ("%QUERY_PARAMS(DECODED)%", "option 'DECODED' is not supported, expected ORIG"),
    ("%REQUESTED_SERVER_NAME(HOST_FIRST)%", "option 'HOST_FIRST' is not supported"),
    ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(x)%", "mask length 'x' is not a number"),
])
def test_refused(text: str, error: str) -> None:
    with pytest.raises(FormatError) as raised:
        compile_format(text)
    assert error in str(raised.value)


def test_operators_are_known_or_unsupported_but_not_both() -> None:
    assert not UNSUPPORTED & set(OPERATORS)


@given(st.text(max_size=60))
def test_any_text_is_formatted_or_refused(text: str) -> None:
    try:
        formatter = compile_format(text)
    except FormatError:
        return
    assert isinstance(formatter(request()), bytes)


@given(st.text(st.characters(codec="utf-8", exclude_characters="%"), max_size=60))
def test_text_without_operators_is_itself(text: str) -> None:
    assert compile_format(text)(stream()).decode() == text


@given(st.sampled_from(sorted(OPERATORS)), st.text(max_size=20), st.integers(0, 99))
def test_no_argument_reaches_the_generated_code(name: str, argument: str, length: int) -> None:
    try:
        formatter = compile_format(f"%{name}({argument}):{length}%")
    except FormatError:
        return
    assert isinstance(formatter(request()), bytes)
    assert "ACCESS_LOG_TEST" not in os.environ
