"""What is cut out of a statistic's name and becomes a label."""

from __future__ import annotations

import pytest

from proxy.config.model import StatsConfig, StatsTag
from proxy.stats.prometheus import Namer
from proxy.stats.tags import DEFAULT_RULES, TagError, extract, rules_of, translate


@pytest.mark.parametrize(("name", "family", "labels"), [
    ("cluster.local.upstream_cx_total", "cluster_upstream_cx_total", 'envoy_cluster_name="local"'),
    ("cluster.outbound|80||a.b.svc.upstream_rq_503", "cluster_b_svc_upstream_rq",
     'envoy_response_code="503",envoy_cluster_name="outbound|80||a"'),
    ("cluster.a.external.upstream_rq_5xx", "cluster_external_upstream_rq_xx",
     'envoy_response_code_class="5",envoy_cluster_name="a"'),
    ("cluster.a.upstream_rq_completed", "cluster_upstream_rq_completed", 'envoy_cluster_name="a"'),
    ("http.ingress.downstream_rq_2xx", "http_downstream_rq_xx",
     'envoy_response_code_class="2",envoy_http_conn_manager_prefix="ingress"'),
    ("listener.0.0.0.0_80.downstream_cx_total", "listener_downstream_cx_total", 'envoy_listener_address="0.0.0.0_80"'),
    ("listener.[__1]_80.downstream_cx_total", "listener_downstream_cx_total", 'envoy_listener_address="[__1]_80"'),
    ("listener.named.worker_0.downstream_cx_active", "listener_worker_downstream_cx_active",
     'envoy_worker_id="0",envoy_listener_address="named"'),
    ("listener.1.2.3.4_5.http.web.downstream_rq_2xx", "listener_http_downstream_rq_xx",
     'envoy_response_code_class="2",envoy_http_conn_manager_prefix="web",envoy_listener_address="1.2.3.4_5"'),
    ("listener.admin.downstream_cx_total", "listener_admin_downstream_cx_total", ""),
    ("tcp.p.downstream_cx_total", "tcp_downstream_cx_total", 'envoy_tcp_prefix="p"'),
    ("server.live", "server_live", ""),
])
def test_default_tags(name: str, family: str, labels: str) -> None:
    series = Namer(StatsConfig()).series(name)
    assert (series.family, sorted(series.labels.split(","))) == (f"envoy_{family}", sorted(labels.split(",")))


ISTIO = (
    StatsTag("cluster_name", r"^cluster(\.(.+);)"),
    StatsTag("http_conn_manager_prefix",
             r"^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)"),
    StatsTag("response_code", r"_rq(_(\d{3}))$"),
    StatsTag("response_code_class", r"_rq(_(\dxx))$"),
    StatsTag("listener_address", r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"),
)


@pytest.mark.parametrize(("name", "family", "labels"), [
    ("cluster.outbound|80||a.b.svc;.upstream_rq_503", "envoy_cluster_upstream_rq",
     'cluster_name="outbound|80||a.b.svc",response_code="503"'),
    ("cluster.plain.upstream_rq_5xx", "envoy_cluster_plain_upstream_rq", 'response_code_class="5xx"'),
    ("http.outbound_0.0.0.0_80;.downstream_rq_2xx", "envoy_http_downstream_rq",
     'response_code_class="2xx",http_conn_manager_prefix="outbound_0.0.0.0_80"'),
    ("listener.0.0.0.0_80.downstream_cx_total", "envoy_listener_downstream_cx_total", 'listener_address="0.0.0.0_80"'),
])
def test_istios_tags(name: str, family: str, labels: str) -> None:
    series = Namer(StatsConfig(tags=ISTIO, use_all_default_tags=False)).series(name)
    assert (series.family, series.labels) == (family, labels)


def test_a_tag_without_regex_takes_the_default_one() -> None:
    config = StatsConfig(tags=(StatsTag("envoy.cluster_name"),), use_all_default_tags=False)
    assert [rule.name for rule in rules_of(config)] == ["envoy.cluster_name"]
    assert len(rules_of(StatsConfig(tags=config.tags))) == len(DEFAULT_RULES)


def test_values_that_are_the_same_everywhere() -> None:
    series = Namer(StatsConfig(tags=(StatsTag("mesh.id", fixed_value='a"b\\c\n'),))).series("server.live")
    assert series.labels == r'mesh_id="a\"b\\c\n"'


def test_bad_tags_are_refused_by_name() -> None:
    with pytest.raises(TagError, match=r"stats tag 'x': regex '\(': missing \)"):
        rules_of(StatsConfig(tags=(StatsTag("x", "("),)))
    with pytest.raises(TagError, match=r"stats tag 'x': no regex .* default tags: envoy\.cluster_name, "):
        rules_of(StatsConfig(tags=(StatsTag("x"),)))


def test_labels_never_repeat() -> None:
    config = StatsConfig(tags=(StatsTag("a.b", fixed_value="1"), StatsTag("a_b", fixed_value="2")))
    assert Namer(config).series("x").labels == 'a_b="1"'


def test_every_rule_sees_the_whole_name_and_cuts_may_overlap() -> None:
    rules = rules_of(StatsConfig(tags=(StatsTag("one", r"(b\.c)"), StatsTag("two", r"c(\.(d))"),
                                       StatsTag("three", r"a\.((b))")), use_all_default_tags=False))
    assert extract("a.b.c.d.e", rules) == ("a..e", [("one", "b.c"), ("two", "d"), ("three", "b")])


def test_posix_classes() -> None:
    assert translate(r"^[_.[:digit:]]*[[:alpha:]]") == r"^[_.0-9]*[A-Za-z]"
    assert translate("[:nonsense:]") == "[:nonsense:]"
