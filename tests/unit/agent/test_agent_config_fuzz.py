"""Whatever stands in PROXY_CONFIG, annotations and variables: a bootstrap, a plan, or an AgentError that says what."""

import json
from typing import Any

from agent_loading import load
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent import explain, launch, proxy_command
from agent.bootstrap import document, node
from agent.bootstrap.facts import Sockets
from agent.documents import to_json
from agent.environment import variables_of
from agent.errors import AgentError
from agent.proxy_config_schema import BY_ANY_NAME
from agent.settings import GROUPS

_TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["a:1", "[::1]:80", "$(HOST_IP):9", "5s", "1.5s", "true", "MUTUAL_TLS", "TPROXY", "\ud800", "\0", "{pod_ip}"]
    ),
)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), _TEXTS)
_NAMES = st.one_of(
    st.sampled_from(
        ["zipkin", "address", "mode", "tlsSettings", "lightstep", "accessToken", "inclusionPrefixes", "probes"]
    ),
    st.text(max_size=8),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=3)),
    max_leaves=8,
)
_DOCUMENTS = st.dictionaries(st.one_of(st.sampled_from(sorted(BY_ANY_NAME)), st.text(max_size=8)), _VALUES, max_size=4)
_VARIABLES = st.dictionaries(
    st.sampled_from(
        [variable.name for group in GROUPS for _, variable, _ in variables_of(group)]
        + ["ISTIO_META_POD_PORTS", "ISTIO_META_DNS_AUTO_ALLOCATE", "ISTIO_METAJSON_LABELS", "ISTIO_METAJSON_X"]
    ),
    st.one_of(_TEXTS, _VALUES.map(json.dumps)),
    max_size=4,
)
_ANNOTATIONS = st.dictionaries(
    st.sampled_from(
        ["proxy.istio.io/config", "status.sidecar.istio.io/port", "sidecar.istio.io/discoveryAddress"]
        + [f"sidecar.istio.io/{name}" for name in ("extraStatTags", "statsHistogramBuckets", "statsFlushInterval")]
    ),
    st.one_of(_TEXTS, _DOCUMENTS.map(json.dumps)),
    max_size=2,
)
_METADATA = st.dictionaries(
    st.one_of(st.sampled_from(sorted({name for names, _, _ in node._TYPES for name in names})), st.text(max_size=4)),
    st.one_of(_VALUES, st.dictionaries(st.sampled_from(["app", "istio-locality"]), _TEXTS, max_size=2)),
    max_size=2,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_DOCUMENTS, _VARIABLES, _ANNOTATIONS, _METADATA)
@example({"tracing": {"zipkin": {}}}, {}, {}, {})
def test_settings_or_a_config_error(
    given: Any, variables: dict[str, str], annotations: dict[str, str], metadata: dict[str, Any]
) -> None:
    variables = {"ISTIO_METAJSON_Y": json.dumps(metadata), **variables}
    try:
        found = load(given, annotations=annotations, resolve_host=lambda _host, _port: "10.0.0.7", **variables)
        explain.render(found).encode()
        made = document.bootstrap(document.facts_of(found, Sockets()))
        proxy_command.plan_of(found, launch.plan(found, Sockets()), 0.0)
    except AgentError as error:
        assert str(error)
        return
    json.dumps(json.loads(to_json(made, 1 << 24)), ensure_ascii=False).encode()
