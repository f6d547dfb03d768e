"""istio.mesh.v1alpha1.ProxyConfig as a table: every field with its type, read from JSON into canonical form.

Canonical is what a protobuf library prints: camelCase names, enums by name, numbers as numbers, and nothing for a
scalar with its zero value, unless a wrapper message makes "unset" and "zero" two things. istiod gets this as metadata.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.durations import format_seconds, parse_proto_duration

Json = Any

_INT32 = (-(2**31), 2**31 - 1)
_UINT32 = (0, 2**32 - 1)
_INT64 = (-(2**63), 2**63 - 1)
_HOST = re.compile(r"\[[0-9A-Fa-f:.%]+\]|\$\(HOST_IP\)|[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
MAX_ENTRIES = 10_000  # of one list or mapping
MAX_VALUES = 100_000  # of one field in all: aliases can make a small YAML file huge
_MAX_UNKNOWN = 16  # names that are kept to be reported


class Invalid(ValueError):
    """A value that its field does not take: `at` is the path within ProxyConfig."""

    def __init__(self, at: str, value: Json, expected: str) -> None:
        super().__init__(expected)
        self.at, self.value = at, value


@dataclass(slots=True)
class Notes:
    """What came up while one field was read: the first names that its messages do not have, and how many there were."""

    unknown: list[str] = field(default_factory=list)
    unknown_count: int = 0
    values: int = 0

    def unknown_name(self, name: str) -> None:
        self.unknown_count += 1
        if len(self.unknown) < _MAX_UNKNOWN:
            self.unknown.append(name)

    def enter(self, value: Json, at: str) -> None:
        """A list or mapping is about to be read. Raises Invalid when there have been too many values."""
        self.values += len(value)
        if self.values > MAX_VALUES:
            raise Invalid(at, value, f"expected at most {MAX_VALUES} values in all")


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a field. `read` takes a value, its path and the notes."""

    read: Callable[[Json, str, Notes], Json]
    presence: bool = False  # printed although it is zero: messages and wrappers
    zero: Json = None  # of an enum

    def is_printed(self, canonical: Json) -> bool:
        return self.presence or bool(canonical) and canonical != self.zero


def leaf(parse: Callable[[Json], Json]) -> Kind:
    """A scalar. `parse` raises ValueError with what was expected."""

    def read(value: Json, at: str, _notes: Notes) -> Json:
        try:
            return parse(value)
        except ValueError as error:
            raise Invalid(at, value, str(error)) from None

    return Kind(read)


# --- scalars ------------------------------------------------------------------------------------------------------


def to_text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def to_path(value: Json) -> str:
    path = to_text(value)
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b""
    if not encoded or b"\0" in encoded:
        raise ValueError("expected a path")
    return path


def to_optional_path(value: Json) -> str:
    return "" if value == "" else to_path(value)


def to_integer(value: Json, least: int, most: int) -> int:
    """protobuf JSON takes an integer as a number, an integral float or a string."""
    if isinstance(value, str) and len(value) < 21 and value.isascii() and value.removeprefix("-").isdigit():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"expected an integer from {least} to {most}")
    return value


def to_boolean(value: Json) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def to_duration(value: Json) -> str:
    seconds = parse_proto_duration(to_text(value))
    if seconds < 0:
        raise ValueError("expected a duration of at least 0s")
    return format_seconds(seconds)


def to_whole_seconds(value: Json) -> str:
    seconds = parse_proto_duration(to_text(value))
    if seconds < 1 or not seconds.is_integer():
        raise ValueError("expected whole seconds, at least 1s")
    return format_seconds(seconds)


def to_address(value: Json) -> str:
    """`host:port`; IPv6 in brackets; the host may be the literal $(HOST_IP)."""
    host, colon, port = to_text(value).rpartition(":")
    if not colon or not _HOST.fullmatch(host) or not port.isascii() or not port.isdigit() or len(port) > 5:
        raise ValueError("expected host:port")
    if not 1 <= int(port) <= 65535:
        raise ValueError("expected host:port with a port from 1 to 65535")
    return to_text(value)


def to_optional_address(value: Json) -> str:
    return "" if value == "" else to_address(value)


def _percentage(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError("expected a percentage from 0 to 100")
    return value


def integer(least: int, most: int) -> Kind:
    return leaf(lambda value: to_integer(value, least, most))


def enum(*names: str, numbers: Sequence[int] = ()) -> Kind:
    by_number = dict(zip(numbers or range(len(names)), names, strict=True))

    def parse(value: Json) -> str:
        if isinstance(value, int) and not isinstance(value, bool) and value in by_number:
            return by_number[value]
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return to_text(value)

    return replace(leaf(parse), zero=by_number[0])


TEXT, PATH, ADDRESS = leaf(to_text), leaf(to_path), leaf(to_optional_address)
BOOLEAN, DURATION = leaf(to_boolean), replace(leaf(to_duration), presence=True)
INT32, UINT32, INT64 = integer(*_INT32), integer(*_UINT32), integer(*_INT64)
PORT = integer(1, 65535)
_NOT_NEGATIVE = integer(0, _INT32[1])

# --- compounds ----------------------------------------------------------------------------------------------------


def wrapped(kind: Kind) -> Kind:
    """google.protobuf.BoolValue and its like: set to zero is not unset."""

    return replace(kind, presence=True)


def repeated(kind: Kind) -> Kind:
    def items(value: Json, at: str, notes: Notes) -> Json:
        if not isinstance(value, list) or len(value) > MAX_ENTRIES:
            raise Invalid(at, value, f"expected a list of at most {MAX_ENTRIES} elements")
        notes.enter(value, at)
        return [kind.read(each, f"{at}[{index}]", notes) for index, each in enumerate(value)]

    return Kind(items)


def mapped(kind: Kind) -> Kind:
    def entries(value: Json, at: str, notes: Notes) -> Json:
        if not isinstance(value, dict) or len(value) > MAX_ENTRIES or not all(isinstance(key, str) for key in value):
            raise Invalid(at, value, f"expected a mapping of at most {MAX_ENTRIES} names to values")
        notes.enter(value, at)
        return {key: kind.read(each, f"{at}.{key[:64]}", notes) for key, each in value.items()}

    return Kind(entries)


def message(fields: Mapping[str, Kind], *, oneof: Sequence[str] = ()) -> Kind:
    """A nested message. Names that it does not have are noted and left out, as the real program tolerates them."""
    names = {spelling: name for name in fields for spelling in (name, snake(name))}

    def read(value: Json, at: str, notes: Notes) -> Json:
        if not isinstance(value, dict):
            raise Invalid(at, value, "expected a mapping of field names")
        notes.enter(value, at)
        found: dict[str, Json] = {}
        for spelling, each in value.items():
            name = names.get(spelling)
            if name is None:
                notes.unknown_name(f"{at}.{str(spelling)[:64]}")
            elif name in found:
                raise Invalid(f"{at}.{name}", each, "the field is given twice")
            elif each is not None:
                canonical = fields[name].read(each, f"{at}.{name}", notes)
                if fields[name].is_printed(canonical):
                    found[name] = canonical
        chosen = [name for name in oneof if name in found]
        if len(chosen) > 1:
            raise Invalid(at, value, f"expected only one of {', '.join(chosen)}")
        return found

    return Kind(read, presence=True)


def snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


# --- the messages -------------------------------------------------------------------------------------------------

_FLAG = wrapped(BOOLEAN)
_NUMBER = wrapped(_NOT_NEGATIVE)
_DISABLED = message({"disabled": _FLAG})
_ENABLED = message({"enabled": _FLAG})
_CLIENT_CERT = enum(
    "UNDEFINED", "SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"
)  # fmt: skip
_TLS = message(
    {
        "mode": enum("DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"),
        "clientCertificate": TEXT,
        "privateKey": TEXT,
        "caCertificates": TEXT,
        "credentialName": TEXT,
        "subjectAltNames": repeated(TEXT),
        "sni": TEXT,
        "insecureSkipVerify": _FLAG,
        "caCrl": TEXT,
    }
)
_REMOTE_SERVICE = message(
    {
        "address": ADDRESS,
        "tlsSettings": _TLS,
        "tcpKeepalive": message({"probes": UINT32, "time": DURATION, "interval": DURATION}),
    }
)
_TAG_SOURCE = message({"name": TEXT, "defaultValue": TEXT})
TRACERS = ("zipkin", "lightstep", "datadog", "stackdriver", "openCensusAgent")
_TRACING = message(
    {
        "zipkin": message({"address": leaf(to_address)}),
        "lightstep": message({"address": leaf(to_address), "accessToken": TEXT}),
        "datadog": message({"address": leaf(to_address)}),
        "stackdriver": message(
            {
                "debug": BOOLEAN,
                "maxNumberOfAttributes": wrapped(INT64),
                "maxNumberOfAnnotations": wrapped(INT64),
                "maxNumberOfMessageEvents": wrapped(INT64),
            }
        ),
        "openCensusAgent": message(
            {
                "address": TEXT,
                "context": repeated(enum("UNSPECIFIED", "W3C_TRACE_CONTEXT", "GRPC_BIN", "CLOUD_TRACE_CONTEXT", "B3")),
            }
        ),
        "customTags": mapped(
            message(
                {"literal": message({"value": TEXT}), "environment": _TAG_SOURCE, "header": _TAG_SOURCE},
                oneof=("literal", "environment", "header"),
            )
        ),
        "maxPathTagLength": UINT32,
        "sampling": leaf(_percentage),
        "tlsSettings": _TLS,
        "enableIstioTags": _FLAG,
    },
    oneof=TRACERS,
)
_HTTP_HEADER = message({"name": TEXT, "value": TEXT})
_READINESS = message(
    {
        "initialDelaySeconds": _NOT_NEGATIVE,
        "timeoutSeconds": _NOT_NEGATIVE,
        "periodSeconds": _NOT_NEGATIVE,
        "successThreshold": _NOT_NEGATIVE,
        "failureThreshold": _NOT_NEGATIVE,
        "httpGet": message(
            {"path": TEXT, "port": PORT, "host": TEXT, "scheme": TEXT, "httpHeaders": repeated(_HTTP_HEADER)}
        ),
        "tcpSocket": message({"host": TEXT, "port": PORT}),
        "exec": message({"command": repeated(TEXT)}),
        "grpc": message({"port": PORT, "service": TEXT}),
    },
    oneof=("httpGet", "tcpSocket", "exec", "grpc"),
)
_PROXY_HEADERS = message(
    {
        "forwardedClientCert": _CLIENT_CERT,
        "setCurrentClientCertDetails": message(dict.fromkeys(("subject", "cert", "chain", "dns", "uri"), _FLAG)),
        "requestId": _DISABLED,
        "server": message({"disabled": _FLAG, "value": TEXT}),
        "attemptCount": _DISABLED,
        "envoyDebugHeaders": _DISABLED,
        "metadataExchangeHeaders": message({"mode": enum("UNDEFINED", "IN_MESH")}),
        "preserveHttp1HeaderCase": _FLAG,
        "xForwardedHost": _ENABLED,
        "xForwardedPort": _ENABLED,
    }
)
_KEY_PROVIDER = message({"pollDelay": DURATION, "fallback": _FLAG})
_CONNECTIONS = message(
    {
        "profile": enum("SIDECAR", "EDGE"),
        **dict.fromkeys(
            (
                "listenerPerConnectionBufferLimitBytes", "clusterPerConnectionBufferLimitBytes",
                "httpMaxConcurrentStreams", "http2InitialStreamWindowSize", "http2InitialConnectionWindowSize",
                "listenerConnectionLimit", "globalDownstreamConnectionLimit",
            ),
            _NUMBER,
        ),
        **dict.fromkeys(
            (
                "httpIdleTimeout", "httpMaxConnectionDuration", "httpDrainTimeout", "httpRequestTimeout",
                "httpRequestHeadersTimeout", "httpStreamIdleTimeout", "httpMaxStreamDuration",
            ),
            DURATION,
        ),
        "httpHeadersWithUnderscoresAction": enum(
            "HEADERS_WITH_UNDERSCORES_UNSPECIFIED", "HEADERS_WITH_UNDERSCORES_ALLOW",
            "HEADERS_WITH_UNDERSCORES_REJECT_REQUEST", "HEADERS_WITH_UNDERSCORES_DROP_HEADER",
        ),
        "httpMergeSlashes": _FLAG,
        "httpPathWithEscapedSlashesAction": enum(
            "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED", "KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT",
            "UNESCAPE_AND_FORWARD",
        ),
    }
)  # fmt: skip

FIELDS: Mapping[str, Kind] = {
    "configPath": PATH,
    "binaryPath": PATH,
    "serviceCluster": TEXT,
    "tracingServiceName": wrapped(
        enum("APP_LABEL_AND_NAMESPACE", "CANONICAL_NAME_ONLY", "CANONICAL_NAME_AND_NAMESPACE")
    ),
    "drainDuration": leaf(to_whole_seconds),
    "discoveryAddress": leaf(to_address),
    "statsdUdpAddress": ADDRESS,
    "proxyAdminPort": PORT,
    "controlPlaneAuthPolicy": enum("NONE", "MUTUAL_TLS", "INHERIT", numbers=(0, 1, 1000)),
    "customConfigFile": leaf(to_optional_path),
    "statNameLength": _NOT_NEGATIVE,
    "concurrency": _NUMBER,
    "proxyBootstrapTemplatePath": leaf(to_optional_path),
    "interceptionMode": enum("REDIRECT", "TPROXY", "NONE"),
    "tracing": _TRACING,
    "envoyAccessLogService": _REMOTE_SERVICE,
    "envoyMetricsService": _REMOTE_SERVICE,
    "proxyMetadata": mapped(TEXT),
    "runtimeValues": mapped(TEXT),
    "statusPort": PORT,
    "extraStatTags": repeated(TEXT),
    "gatewayTopology": message(
        {"numTrustedProxies": UINT32, "forwardClientCertDetails": _CLIENT_CERT, "proxyProtocol": message({})}
    ),
    "terminationDrainDuration": DURATION,
    "meshId": TEXT,
    "readinessProbe": _READINESS,
    "proxyStatsMatcher": message(
        dict.fromkeys(("inclusionPrefixes", "inclusionSuffixes", "inclusionRegexps"), repeated(TEXT))
    ),
    "holdApplicationUntilProxyStarts": _FLAG,
    "caCertificatesPem": repeated(TEXT),
    "image": message({"imageType": TEXT}),
    "privateKeyProvider": message({"cryptomb": _KEY_PROVIDER, "qat": _KEY_PROVIDER}, oneof=("cryptomb", "qat")),
    "proxyHeaders": _PROXY_HEADERS,
    "fileFlushInterval": DURATION,
    "fileFlushMinSizeKb": UINT32,
    "statsCompression": _FLAG,
    "connectionSettings": _CONNECTIONS,
    # Deprecated, and still in the message.
    "discoveryRefreshDelay": DURATION,
    "zipkinAddress": ADDRESS,
    "envoyMetricsServiceAddress": ADDRESS,
    "availabilityZone": TEXT,
    "sds": message({"enabled": BOOLEAN, "k8sSaJwtPath": TEXT}),
}

# Fields of older releases that the message no longer has; pods still carry them and nothing follows from them.
OBSOLETE = frozenset({"parentShutdownDuration", "connectTimeout"})

# Fields that displace each other when a later source sets one.
ONEOF = ("serviceCluster", "tracingServiceName")
BY_ANY_NAME: Mapping[str, str] = {
    spelling: name for name in (*FIELDS, *sorted(OBSOLETE)) for spelling in (name, snake(name))
}
