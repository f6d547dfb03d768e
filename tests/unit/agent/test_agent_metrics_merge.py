"""Documents of metrics: reading, converting and merging, judged by promtool and by prometheus-client's parsers."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from agent.metrics.exposition import BadDocument, Format, Reader
from agent.metrics.merge import Merger
from tests.unit.agent.status_tools import promtool

TEXT, OPEN = Format.TEXT, Format.OPENMETRICS


def merge(documents: Sequence[tuple[Format, str]], page: Format = TEXT) -> tuple[str, list[tuple[int, str]]]:
    merger = Merger(page)
    dropped: list[tuple[int, str]] = []
    for source, document in documents:
        reader = Reader(source, page)
        lines = document.encode().split(b"\n")
        reader.feed(lines)
        dropped += [each for each in merger.add(reader.families()) if each[0]]
    return b"".join(merger.render()).decode(), dropped


def one(document: str, source: Format = TEXT, page: Format = TEXT) -> str:
    return merge([(source, document)], page)[0]


AGENT = """\
# HELP istio_agent_scrapes_total The total number of scrapes.
# TYPE istio_agent_scrapes_total counter
istio_agent_scrapes_total 3.0
"""

PROXY = """\
# TYPE istio_requests_total counter
istio_requests_total{reporter="destination",response_code="200"} 12
istio_requests_total{reporter="source",response_code="503"} 1

# TYPE envoy_server_live gauge
envoy_server_live{} 1

# TYPE istio_request_duration_milliseconds histogram
istio_request_duration_milliseconds_bucket{reporter="source",le="0.5"} 1
istio_request_duration_milliseconds_bucket{reporter="source",le="+Inf"} 2
istio_request_duration_milliseconds_sum{reporter="source"} 7.5
istio_request_duration_milliseconds_count{reporter="source"} 2
"""

# An application that is an Envoy itself and a gRPC client that knows of the mesh: families that the proxy has too.
APPLICATION = """\
# HELP istio_requests_total Requests.
# TYPE istio_requests_total counter
istio_requests_total{reporter="app",response_code="200"} 5
istio_requests_total{response_code="503",reporter="source"} 99
# HELP envoy_server_live Is it?
# TYPE envoy_server_live gauge
envoy_server_live 0
# HELP istio_request_duration_milliseconds Duration.
# TYPE istio_request_duration_milliseconds histogram
istio_request_duration_milliseconds_bucket{reporter="source",le="100"} 1
istio_request_duration_milliseconds_bucket{reporter="source",le="+Inf"} 2
istio_request_duration_milliseconds_sum{reporter="source"} 7.5
istio_request_duration_milliseconds_count{reporter="source"} 2
istio_request_duration_milliseconds_bucket{reporter="app",le="+Inf"} 4
istio_request_duration_milliseconds_sum{reporter="app"} 1
istio_request_duration_milliseconds_count{reporter="app"} 4
# HELP app_things_total Things.
# TYPE app_things_total counter
app_things_total 1
"""


def test_duplicate_families_become_one() -> None:
    assert promtool(AGENT + PROXY + APPLICATION)[0] == 1  # what concatenation makes of it
    page, dropped = merge([(TEXT, AGENT), (TEXT, PROXY), (TEXT, APPLICATION)])
    code, said = promtool(page)
    assert code in (0, 3) and "duplicate" not in said, said
    assert [count for count, _ in dropped] == [1, 1, 4]
    families = {family.name: family for family in parse_text(page)}
    requests = {tuple(sorted(s.labels.items())): s.value for s in families["istio_requests"].samples}
    assert requests == {
        (("reporter", "destination"), ("response_code", "200")): 12,
        (("reporter", "source"), ("response_code", "503")): 1,
        (("reporter", "app"), ("response_code", "200")): 5,
    }
    assert families["istio_requests"].documentation == "Requests."
    assert [sample.value for sample in families["envoy_server_live"].samples] == [1]
    buckets = [s.labels for s in families["istio_request_duration_milliseconds"].samples if s.name.endswith("_bucket")]
    assert buckets == [
        {"reporter": "source", "le": "0.5"},
        {"reporter": "source", "le": "+Inf"},
        {"reporter": "app", "le": "+Inf"},
    ]
    assert page.count("# TYPE istio_requests_total ") == page.count("# HELP istio_requests_total ") == 1


def test_what_is_alone_stays_as_it_is() -> None:
    wanted = [line for line in (AGENT + PROXY).split("\n") if line]
    assert [line for line in merge([(TEXT, AGENT), (TEXT, PROXY)])[0].split("\n") if line] == wanted


@pytest.mark.parametrize(
    ("first", "second", "kind", "samples", "why"),
    [
        ("counter x_total\nx_total 1", "counter x_total\nx_total{a='b'} 2", "counter", 2, ""),
        ("counter x\nx 1", "gauge x\nx{a='b'} 2", "untyped", 2, ""),
        ("gauge x\nx 1", "gauge x\nx 2", "gauge", 1, "x has the same series in two sources"),
        ("gauge x\nx{a='1',b='2'} 1", "gauge x\nx{b='2',a='1'} 2", "gauge", 1, "same series"),
        ("gauge x\nx{a='1'} 1", "gauge x\nx{a='1',} 2", "gauge", 1, "same series"),
        ("gauge x\nx 1", "histogram x\nx_bucket{le='+Inf'} 1\nx_sum 1\nx_count 1", "gauge", 1, "x has the types gauge"),
        ("summary x\nx_sum 1\nx_count 1", "gauge x_count\nx_count 1", "summary", 2, "x_count has sample names of x"),
        ("gauge x_count\nx_count 1", "summary x\nx_sum 1\nx_count 1", "gauge", 1, "x has sample names of x_count"),
        ("untyped x\nx 1", "histogram x\nx_bucket{le='1'} 1", "untyped", 1, "types untyped and histogram"),
    ],
)
def test_conflicts(first: str, second: str, kind: str, samples: int, why: str) -> None:
    documents = []
    for text in (first, second):
        head, _, lines = text.partition("\n")
        documents.append((TEXT, f"# TYPE {' '.join(reversed(head.split()))}\n{lines}\n".replace("'", '"')))
    page, dropped = merge(documents)
    assert promtool(page)[0] != 1, page
    assert page.count("# TYPE ") == 1
    assert page.split("\n")[0].split()[3] == kind
    assert len([line for line in page.split("\n") if line and not line.startswith("#")]) == samples
    assert [reason for _, reason in dropped if why in reason] == [reason for _, reason in dropped]
    assert bool(dropped) == bool(why)


def test_types_that_come_late_and_families_in_pieces() -> None:
    page = one('x_sum 1\nx_count 2\n# TYPE x summary\n# HELP x Text.\nx{quantile="0.5"} 3\ny 1\nx{quantile="0.9"} 4\n')
    assert page == (
        '# HELP x Text.\n# TYPE x summary\nx_count 2\nx_sum 1\nx{quantile="0.5"} 3\nx{quantile="0.9"} 4\ny 1\n'
    )
    assert promtool(page)[0] == 0 or "no help" in promtool(page)[1]


def test_whatever_labels_hold() -> None:
    lines = [
        'a{b="}"} 1',
        'a{b="\\"} 2"} 1',
        'a{b="\\\\",c="x,y=\\"z\\""} 1',
        'a { b = "c" , } 1.5e-3 1700000000000',
        "a{} +Inf",
        'a{b="\xe9\u4e16"} -Inf',
        'a{b="n"}NaN',
        'a{b="tab"}\t1\t2',
        'a{b="#"} 0x1'.replace("0x1", "0"),
    ]
    page = one("\n".join(lines))
    assert page == "\n".join(lines) + "\n"
    assert promtool(page)[0] != 1


def test_an_escape_of_nothing_is_a_backslash() -> None:
    page = one('path{p="C:\\dir\\\\x\\n"} 1')
    assert page == 'path{p="C:\\\\dir\\\\x\\n"} 1\n'
    assert promtool(page)[0] != 1


def test_quoted_names() -> None:
    document = '# TYPE "a.b" gauge\n{"a.b",c="d"} 1\n{"a.b","e.f"="d"} 2\n'
    assert one(document) == document
    page, dropped = merge([(TEXT, document), (TEXT, document)])
    assert page == document and dropped[0][0] == 2


@pytest.mark.parametrize(
    "line",
    [
        "<html>",
        "a",
        "a b",
        "a1",
        "1a 1",
        'a{b="c" 1',
        'a{b="c"d="e"} 1',
        "a{b=c} 1",
        "a{b} 1",
        'a{"b"} 1',
        'a{b="c",b="d"} 1',
        'a{b="c"',
        "a 1 2 3",
        "a 1 1.5",
        "a 1 # {} 2",
        "a 1,5",
        "a 1\r",
        "a\x000 1",
        "a 1e999",
        f"a {'9' * 400}",
        "a 1 9999999999999999999",
    ],
)
def test_one_bad_line_is_a_bad_document(line: str) -> None:
    reader = Reader(TEXT, TEXT)
    with pytest.raises(BadDocument, match="line 2: "):
        reader.feed([b"good 1", line.encode()])


@pytest.mark.parametrize("kind", ["histogram", "summary"])
@pytest.mark.parametrize("bound", ["x", "+Inf ", "1e999", ""])
def test_a_bucket_or_quantile_that_is_no_number(kind: str, bound: str) -> None:
    label, name = ("le", "a_bucket") if kind == "histogram" else ("quantile", "a")
    document = f'# TYPE a {kind}\n{name}{{b="{label}=\\"x\\"",{label}="%s"}} 1\na_sum 1\na_count 1\n'
    assert promtool(one(document % "0.5"))[0] != 1
    assert promtool(document % bound)[0] == 1
    with pytest.raises(BadDocument, match=f"{label} is not a number"):
        one(document % bound)
    assert one((document % bound).replace(f"# TYPE a {kind}", "# TYPE b gauge"))  # an ordinary label


def test_what_a_strict_reader_stumbles_over_is_written_plainly() -> None:
    page = one('# HELP a A \\ path C:\\dir, "quoted\\".\n# TYPE a gauge\na 1 \t\na{b="c"} 2 5 \n'.replace("\\\\", "\\"))
    assert page.splitlines()[2:] == ["a 1", 'a{b="c"} 2 5']
    assert promtool(page)[0] != 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("a 1\n", "does not end with # EOF"),
        ("a 1\n# EOF\na 1\n", "line 3: something follows # EOF"),
        ("# TYPE a gauge\n# TYPE a counter\na 1\n# EOF\n", "line 2: a second type for 'a'"),
        ("a 1 1e300\n# EOF\n", "line 1: timestamp is out of range"),
        ("a 1 1e999\n# EOF\n", "line 1: number is out of range"),
    ],
)
def test_bad_openmetrics(document: str, message: str) -> None:
    with pytest.raises(BadDocument, match=message):
        one(document, OPEN, TEXT)


OPENMETRICS = """\
# TYPE a_seconds counter
# HELP a_seconds With \\"quotes\\".
# UNIT a_seconds seconds
a_seconds_total{x="1"} 5 1700000000.25 # {trace_id="abc"} 0.5 1700000000
a_seconds_created{x="1"} 1600000000 1700000000.25
# TYPE b info
b_info{version="1"} 1
# TYPE c stateset
c{c="on"} 1
# TYPE d gaugehistogram
d_bucket{le="+Inf"} 3
d_gcount 3
d_gsum 2
# TYPE e histogram
e_bucket{le="1.0"} 1 # {trace_id="abc"} 0.5
e_bucket{le="+Inf"} 1
e_count 1
e_sum 0.5
e_created 1600000000
# TYPE f unknown
f 1
# EOF
"""


def test_openmetrics_becomes_text() -> None:
    page = one(OPENMETRICS, OPEN, TEXT)
    assert page.split("\n") == [
        '# HELP a_seconds_total With "quotes".',
        "# TYPE a_seconds_total counter",
        'a_seconds_total{x="1"} 5 1700000000250',
        "# TYPE b_info gauge",
        'b_info{version="1"} 1',
        "# TYPE c gauge",
        'c{c="on"} 1',
        "# TYPE d_bucket untyped",
        'd_bucket{le="+Inf"} 3',
        "# TYPE d_gcount untyped",
        "d_gcount 3",
        "# TYPE d_gsum untyped",
        "d_gsum 2",
        "# TYPE e histogram",
        'e_bucket{le="1.0"} 1',
        'e_bucket{le="+Inf"} 1',
        "e_count 1",
        "e_sum 0.5",
        "# TYPE f untyped",
        "f 1",
        "",
    ]
    assert promtool(page)[0] != 1


def test_text_becomes_openmetrics() -> None:
    text = (
        '# HELP x_total Say "x".\n# TYPE x_total counter\nx_total{a="b"} 1 1500\n'
        "# TYPE envoy_rq counter\nenvoy_rq 2\n# TYPE g gauge\ng 1\nu 1\n# a remark\n\n"
        '# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1\n'
    )
    page = one(text, TEXT, OPEN)
    assert page.split("\n") == [
        '# HELP x Say \\"x\\".',
        "# TYPE x counter",
        'x_total{a="b"} 1 1.500',
        "# TYPE envoy_rq unknown",
        "envoy_rq 2",
        "# TYPE g gauge",
        "g 1",
        "# TYPE u unknown",
        "u 1",
        "# TYPE h histogram",
        'h_bucket{le="+Inf"} 1',
        "h_sum 1",
        "h_count 1",
        "# EOF",
        "",
    ]
    names = [family.name for family in parse_openmetrics(page)]
    assert names == ["x", "envoy_rq", "g", "u", "h"]


def test_a_mixed_openmetrics_page_is_one() -> None:
    """Own and proxy's text with an application that speaks OpenMetrics, names in common included."""
    application = OPENMETRICS.replace("# EOF\n", "") + "# TYPE istio_requests counter\n"
    application += 'istio_requests_total{reporter="app"} 5\n# EOF\n'
    page, dropped = merge([(TEXT, AGENT), (TEXT, PROXY), (OPEN, application)], OPEN)
    assert not dropped
    assert page.endswith("# EOF\n") and page.count("# EOF") == 1
    families = {family.name: family for family in parse_openmetrics(page)}
    assert len(families["istio_requests"].samples) == 3
    assert 'trace_id="abc"' in page


def test_text_gauge_and_counter_of_one_stem() -> None:
    page = one("# TYPE x gauge\nx 1\n# TYPE x_total counter\nx_total 2\n", TEXT, OPEN)
    assert [family.name for family in parse_openmetrics(page)] == ["x", "x_total"]


@pytest.mark.parametrize("source", [TEXT, OPEN])
def test_any_cut_is_bad_or_good_but_never_breaks_the_page(source: Format) -> None:
    """A source that was cut off anywhere: refused, or merged into something that parses."""
    whole = OPENMETRICS if source is OPEN else APPLICATION
    for cut in range(len(whole)):
        try:
            page, _ = merge([(TEXT, PROXY), (source, whole[:cut])])
        except BadDocument:
            continue
        assert list(parse_text(page))


def random_document(random: Random) -> str:
    """A document that is good by itself, with few names, so that documents collide in every way."""
    lines = []
    stems = random.sample(["a", "b", "a_total", "a_count", "a_bucket", "b_sum", "a_created"], 3)
    taken: set[str] = set()
    for stem in stems:
        kind = random.choice(["counter", "gauge", "histogram", "summary", "untyped", ""])
        names = {stem, *(stem + suffix for suffix in ("_bucket", "_sum", "_count") if kind in ("histogram", "summary"))}
        if names & taken:
            continue
        taken |= names
        lines += [f"# HELP {stem} Text."] if random.random() < 0.5 else []
        lines += [f"# TYPE {stem} {kind}"] if kind else []
        for label in random.sample(["", 'x="1"', 'x="1",y="2"', 'y="2",x="1"'], 2):
            if kind == "histogram":
                comma = f"{label}," if label else ""
                lines += [f'{stem}_bucket{{{comma}le="{bound}"}} 1' for bound in ("1.0", "+Inf")]
            elif kind == "summary":
                comma = f"{label}," if label else ""
                lines.append(f'{stem}{{{comma}quantile="0.5"}} 1')
            lines += (
                [f"{stem}_sum{{{label}}} 1", f"{stem}_count{{{label}}} 1"]
                if kind in ("histogram", "summary")
                else [f"{stem}{{{label}}} 1" if label else f"{stem} 1"]
            )
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", range(5))
def test_whatever_collides_the_page_is_one_document(seed: int) -> None:
    random = Random(seed)
    for _ in range(12):
        documents = [random_document(random) for _ in range(3)]
        page, _ = merge([(TEXT, document) for document in documents])
        code, said = promtool(page)
        assert code != 1, f"{said}\n{documents}\n{page}"
        types = [line.split()[2] for line in page.split("\n") if line.startswith("# TYPE ")]
        assert len(types) == len(set(types))
        # Nothing of the first document is ever touched but its types.
        first = {line for line in documents[0].split("\n") if line and not line.startswith("#")}
        assert first <= set(page.split("\n"))
        opened, _ = merge([(TEXT, document) for document in documents], OPEN)
        assert list(parse_openmetrics(opened))


@pytest.mark.parametrize("seed", range(5))
def test_mutated_documents_are_refused_or_merged(seed: int) -> None:
    random = Random(seed)
    for _ in range(200):
        source = random.choice([TEXT, OPEN])
        data = bytearray((OPENMETRICS if source is OPEN else APPLICATION).encode())
        for _ in range(random.randrange(1, 6)):
            data[random.randrange(len(data))] = random.choice(b'\n "{}=,#\\_a1\x00\xff')
        reader = Reader(source, TEXT)
        try:
            reader.feed(bytes(data).split(b"\n"))
            families = list(reader.families())
        except BadDocument:
            continue
        merger = Merger(TEXT)
        proxy = Reader(TEXT, TEXT)
        proxy.feed(PROXY.encode().split(b"\n"))
        list(merger.add(proxy.families()))
        list(merger.add(families))
        page = b"".join(merger.render())
        try:
            page.decode()
        except UnicodeDecodeError:
            continue  # the page checks that before it reads a document
        again = Reader(TEXT, TEXT)
        again.feed(page.split(b"\n"))
        assert sum(len(family.lines) for family in again.families()) >= 6
