"""Composable pieces of configuration, as YAML text: a case writes out what it is about, the rest is here."""

from __future__ import annotations

from textwrap import dedent, indent

from tests.conformance.dsl import Config

_TYPE = "type.googleapis.com/envoy.extensions.filters"
HCM = f"{_TYPE}.network.http_connection_manager.v3.HttpConnectionManager"
TCP_PROXY = f"{_TYPE}.network.tcp_proxy.v3.TcpProxy"
ROUTER = f"{_TYPE}.http.router.v3.Router"
HTTP_INSPECTOR = f"""
- name: envoy.filters.listener.http_inspector
  typed_config: {{"@type": {_TYPE}.listener.http_inspector.v3.HttpInspector}}
"""
ORIGINAL_DST = f"""
- name: envoy.filters.listener.original_dst
  typed_config: {{"@type": {_TYPE}.listener.original_dst.v3.OriginalDst}}
"""
ISTIO_FORMAT = (
    '[%START_TIME%] \\"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\\" %RESPONSE_CODE% '
    "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "
    '\\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% '
    '%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \\"%REQ(X-FORWARDED-FOR)%\\" \\"%REQ(USER-AGENT)%\\" '
    '\\"%REQ(X-REQUEST-ID)%\\" \\"%REQ(:AUTHORITY)%\\" \\"%UPSTREAM_HOST%\\" %UPSTREAM_CLUSTER_RAW% '
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% "
    "%ROUTE_NAME%\\n"
)
ACCESS_LOG = f"""
access_log:
- name: envoy.access_loggers.file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: $(log)
    log_format: {{text_format_source: {{inline_string: "{ISTIO_FORMAT}"}}}}
"""
QUICK_CLOSE = "delayed_close_timeout: 0.05s"
"""In place of the default second, so that each refused request does not cost one."""


def nest(text: str, columns: int) -> str:
    """A block moved to the right."""
    return indent(dedent(text).strip("\n"), " " * columns)


def bootstrap(*parts: str, extra: str = "", flags: tuple[str, ...] = ()) -> Config:
    """A whole file of `listener(...)` and `cluster(...)` parts."""
    listeners = [part for part in parts if part.startswith("- name: listener/")]
    clusters = [part for part in parts if not part.startswith("- name: listener/")]
    text = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: $(admin)}}}\nstatic_resources:\n"
    text += "  listeners:\n" + "\n".join(nest(part, 2) for part in listeners) + "\n"
    text += "  clusters:\n" + "\n".join(nest(part, 2) for part in clusters) + "\n" if clusters else ""
    return Config(text.replace("- name: listener/", "- name: ") + dedent(extra), flags)


def listener(name: str, *chains: str, listener_filters: str = "", extra: str = "") -> str:
    """A listener on a free port of 127.0.0.1; `chains` are `chain(...)`s."""
    text = f"- name: listener/{name}\n  address: {{socket_address: {{address: 127.0.0.1, port_value: $({name})}}}}\n"
    if listener_filters:
        text += "  listener_filters:\n" + nest(listener_filters, 2) + "\n"
    if extra:
        text += nest(extra, 2) + "\n"
    return text + "  filter_chains:\n" + "\n".join(nest(part, 2) for part in chains)


def chain(filters: str, match: str = "") -> str:
    """A filter chain with one network filter; `match` is the flow mapping of filter_chain_match."""
    lead = f"- filter_chain_match: {match}\n  filters:\n" if match else "- filters:\n"
    return lead + nest(filters, 2)


def hcm(routes: str = "", *, vhosts: str = "", prefix: str = "main", extra: str = QUICK_CLOSE, table: str = "") -> str:
    """An HTTP connection manager: `routes` of one virtual host `*`, or whole `vhosts`; `table` joins route_config."""
    text = f'- name: hcm\n  typed_config:\n    "@type": {HCM}\n    stat_prefix: {prefix}\n'
    text += '    http_filters: [{name: router, typed_config: {"@type": ' + ROUTER + "}}]\n"
    text += nest(ACCESS_LOG, 4) + "\n" + (nest(extra, 4) + "\n" if extra else "")
    text += "    route_config:\n      name: local\n" + (nest(table, 6) + "\n" if table else "")
    if vhosts:
        return text + "      virtual_hosts:\n" + nest(vhosts, 6)
    text += '      virtual_hosts:\n      - name: all\n        domains: ["*"]\n        routes:\n'
    return text + nest(routes or "- {match: {prefix: /}, route: {cluster: a}}", 8)


def tcp(cluster_name: str = "a", *, prefix: str = "tcp", extra: str = "") -> str:
    """A TCP proxy."""
    text = f'- name: tcp\n  typed_config:\n    "@type": {TCP_PROXY}\n    stat_prefix: {prefix}\n'
    return text + f"    cluster: {cluster_name}\n" + nest(ACCESS_LOG, 4) + "\n" + nest(extra, 4)


def http(name: str = "main", routes: str = "", *, vhosts: str = "", extra: str = QUICK_CLOSE, table: str = "") -> str:
    """A listener with one HTTP connection manager of the same name."""
    return listener(name, chain(hcm(routes, vhosts=vhosts, prefix=name, extra=extra, table=table)))


def cluster(name: str, *endpoints: str, kind: str = "STATIC", extra: str = "", address: str = "127.0.0.1") -> str:
    """A cluster; an endpoint is the name of a placeholder, `up:a` by default for cluster `a`; `kind` its type."""
    text = f"- name: {name}\n  type: {kind}\n"
    if "connect_timeout" not in extra:
        text += "  connect_timeout: 2s\n"
    if kind != "ORIGINAL_DST":
        text += f"  load_assignment:\n    cluster_name: {name}\n    endpoints:\n    - lb_endpoints:"
        text += "" if endpoints else " []"
        for endpoint in endpoints:
            socket_address = f"{{address: {address}, port_value: $({endpoint})}}"
            text += f"\n      - endpoint: {{address: {{socket_address: {socket_address}}}}}"
        text += "\n"
    return text + nest(extra, 2)


A = cluster("a", "up:a")
BASIC = bootstrap(http(), A)
"""Default connection manager (but for a quicker close after errors), every request to upstream `a`."""
