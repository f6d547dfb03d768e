"""config.core.v3 and type.v3: addresses, ranges, percentages, data sources, header mutations."""

from __future__ import annotations

import ipaddress
import os
import re
from functools import partial
from pathlib import Path

from proxy.config import model
from proxy.config.formats import check_format
from proxy.config.model import HeaderMutations, HeaderToAdd, IPNetwork, SocketAddress
from proxy.config.reader import Reader, Skip

_TOKEN = re.compile(r"[0-9A-Za-z!#$%&'*+\-.^_`|~]+")
_DENOMINATORS = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}
_APPEND_ACTIONS = {
    "APPEND_IF_EXISTS_OR_ADD": model.APPEND_IF_EXISTS_OR_ADD,
    "ADD_IF_ABSENT": model.ADD_IF_ABSENT,
    "OVERWRITE_IF_EXISTS_OR_ADD": model.OVERWRITE_IF_EXISTS_OR_ADD,
    "OVERWRITE_IF_EXISTS": model.OVERWRITE_IF_EXISTS,
}


# --- addresses ----------------------------------------------------------------------------------------------------


def is_ip(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address (without a zone)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def socket_address(reader: Reader, *, name_allowed: bool = False) -> SocketAddress:
    """core.v3.SocketAddress: TCP, a numeric port and an IP address (or a name, where DNS resolves it)."""
    if reader.enum("protocol") != "TCP":
        reader.error("protocol", "UDP is not supported yet; supported: TCP")
    if reader.has("named_port"):
        reader.take("named_port")
        reader.error("named_port", "is not supported yet; give port_value")
    host = reader.string("address")
    if host and not name_allowed and not is_ip(host):
        reader.error("address", f"malformed IP address: {host}")
    elif is_ip(host):
        host = str(ipaddress.ip_address(host))
    return SocketAddress(host, reader.integer("port_value"))


def address(reader: Reader, *, name_allowed: bool = False) -> SocketAddress:
    """core.v3.Address with a socket address."""
    kind = reader.chosen("address")
    if kind != "socket_address":
        if kind is not None:
            reader.take(kind)
            what = "Unix domain sockets are" if kind == "pipe" else "internal listeners are"
            reader.error(kind, f"{what} not supported yet; supported: socket_address")
        raise Skip
    return reader.need("socket_address", partial(socket_address, name_allowed=name_allowed))


def cidr_range(reader: Reader) -> IPNetwork:
    """core.v3.CidrRange; bits beyond the prefix are cut off."""
    prefix, length = reader.string("address_prefix"), reader.integer("prefix_len")
    if not is_ip(prefix):
        if prefix:
            reader.error("address_prefix", f"malformed IP address: {prefix}")
        raise Skip
    if length > ipaddress.ip_address(prefix).max_prefixlen:
        reader.error("prefix_len", f"{length} is too long for {prefix}")
        raise Skip
    return ipaddress.ip_network((prefix, length), strict=False)


# --- numbers ------------------------------------------------------------------------------------------------------


def percent(reader: Reader) -> float:
    """type.v3.Percent: 0.0 to 100.0."""
    return float(reader.take("value") or 0.0)


def fractional_percent(reader: Reader) -> float:
    """type.v3.FractionalPercent as a share from 0.0 to 1.0."""
    return min(1.0, reader.integer("numerator") / _DENOMINATORS[reader.enum("denominator")])


def runtime_fractional_percent(reader: Reader) -> float:
    """core.v3.RuntimeFractionalPercent as a share; a runtime key that is set holds a fraction or whole percents."""
    share = reader.sub("default_value", fractional_percent) or 0.0
    key = reader.string("runtime_key")
    value = reader.scope.runtime_value(key)
    if isinstance(value, dict):
        denominator = _DENOMINATORS.get(str(value.get("denominator", "HUNDRED")))
        try:
            numerator = float(value.get("numerator", 0))
        except (TypeError, ValueError):
            return share
        return share if denominator is None else min(1.0, numerator / denominator)
    return min(1.0, reader.scope.runtime_number(key, share * 100) / 100)


def runtime_double(reader: Reader) -> float:
    """core.v3.RuntimeDouble with the runtime key looked up."""
    value = float(reader.take("default_value") or 0.0)
    return reader.scope.runtime_number(reader.string("runtime_key"), value)


# --- data ---------------------------------------------------------------------------------------------------------


def data_source(reader: Reader) -> bytes:
    """core.v3.DataSource, read now. Raises Skip when it cannot be read."""
    kind = reader.chosen("specifier")
    if kind == "inline_bytes":
        return bytes(reader.take(kind))
    if kind == "inline_string":
        return reader.string(kind).encode()
    if kind == "filename":
        name = reader.string(kind)
        try:
            return Path(name).read_bytes()
        except OSError as error:
            reader.error(kind, f"unable to read file {name!r}: {error.strerror}")
    elif kind == "environment_variable":
        name = reader.string(kind)
        value = os.environ.get(name)
        if value is not None:
            return os.fsencode(value)
        reader.error(kind, f"Environment variable doesn't exist: {name}")
    raise Skip


# --- header mutations ---------------------------------------------------------------------------------------------


def header_name(reader: Reader, field: str, text: str, restricted: str = "") -> bytes:
    """A header's name in lower case; ``restricted`` is the verb of the error for pseudo-headers and host."""
    name = text.lower()
    if restricted and (name.startswith(":") or name == "host"):
        reader.error(field, f":-prefixed or host headers may not be {restricted}")
    elif name and not _TOKEN.fullmatch(name.removeprefix(":")):
        reader.error(field, f"{text!r} is not a header name")
    return name.encode()


def _header_value(reader: Reader) -> tuple[bytes, str]:
    name = header_name(reader, "key", reader.string("key"), "modified")
    value = reader.string("value")
    check_format(reader, "value", value)
    return name, value


def header_value_option(reader: Reader) -> HeaderToAdd:
    """core.v3.HeaderValueOption; the deprecated ``append`` chooses between appending and overwriting."""
    name, value = reader.need("header", _header_value)
    action = _APPEND_ACTIONS[reader.enum("append_action")]
    if reader.has("append"):
        append = reader.boolean("append")
        if action != model.APPEND_IF_EXISTS_OR_ADD:
            reader.error("append", "Both append and append_action are set and it's not allowed")
        action = model.APPEND_IF_EXISTS_OR_ADD if append else model.OVERWRITE_IF_EXISTS_OR_ADD
    return HeaderToAdd(name, value, action, reader.boolean("keep_empty_value"))


def header_mutations(reader: Reader) -> HeaderMutations:
    """The four header mutation fields of a route, virtual host, route configuration or weighted cluster."""
    return HeaderMutations(
        request_add=reader.each("request_headers_to_add", header_value_option),
        request_remove=_removals(reader, "request_headers_to_remove"),
        response_add=reader.each("response_headers_to_add", header_value_option),
        response_remove=_removals(reader, "response_headers_to_remove"),
    )


def _removals(reader: Reader, field: str) -> tuple[bytes, ...]:
    return tuple(header_name(reader, f"{field}[{i}]", name, "removed") for i, name in enumerate(reader.strings(field)))
