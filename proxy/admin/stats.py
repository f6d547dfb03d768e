"""`/stats` and `/stats/prometheus`."""

from __future__ import annotations

import html
from dataclasses import dataclass

from proxy.admin import patterns
from proxy.admin.console import Console
from proxy.admin.messages import HTML, JSON, TEXT, Request, Response, bad_request
from proxy.stats import prometheus, render
from proxy.stats.selection import ALL, COUNTERS, GAUGES, HISTOGRAMS, TEXT_READOUTS, Selection

FORMATS = ("html", "active-html", "json", "prometheus", "text")
TYPES = {"All": ALL, "Counters": frozenset((COUNTERS,)), "Gauges": frozenset((GAUGES,)),
         "Histograms": frozenset((HISTOGRAMS,)), "TextReadouts": frozenset((TEXT_READOUTS,))}
BUCKET_MODES = (render.CUMULATIVE, render.DISJOINT, render.DETAILED, render.SUMMARY, render.NATIVE)
REFRESH = 5
"""Seconds between two loads of the page that keeps itself up to date."""


class Refused(Exception):
    """A parameter that is not understood; the text is the body of the 400."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a request, understood."""

    selection: Selection
    format: str
    buckets: str


def parse(request: Request, format_: str | None = None) -> Parameters:
    """Understand a request; ``format_`` is given where the path says it. Raises Refused with Envoy's texts."""
    matches = None
    if pattern := request.get("filter"):
        try:
            matches = patterns.search(pattern)
        except patterns.PatternError as error:
            raise Refused(f"Invalid re2 regex: {error}") from None
    buckets = request.get("histogram_buckets") or ""
    if buckets and buckets not in BUCKET_MODES:
        raise Refused(f"usage: /stats?histogram_buckets=({'|'.join(BUCKET_MODES)})\n")
    kinds = TYPES.get(request.get("type") or "All")
    if kinds is None:
        raise Refused("invalid &type= param")
    if format_ is None:
        format_ = request.get("format") or "text"
    if format_ not in FORMATS:
        raise Refused(f"usage: /stats?format=({'|'.join(FORMATS)})\n\n")
    if format_ == "prometheus":
        if buckets in (render.DISJOINT, render.DETAILED):
            raise Refused("unsupported prometheus histogram bucket mode")
        if buckets == render.NATIVE:
            raise Refused("histogram_buckets=prometheusnative needs the protobuf exposition format: not supported")
    elif buckets == render.NATIVE:
        raise Refused("histogram_buckets=prometheusnative is for /stats/prometheus")
    selection = Selection(request.has("usedonly"), matches, request.has("invert_filter"), kinds)
    return Parameters(selection, format_, buckets)


async def handle_stats(console: Console, request: Request) -> Response:
    """Statistics as text, JSON, HTML or in Prometheus' format."""
    return await _answer(console, request, None)


async def handle_prometheus(console: Console, request: Request) -> Response:
    """Statistics in Prometheus' format."""
    return await _answer(console, request, "prometheus")


async def _answer(console: Console, request: Request, format_: str | None) -> Response:
    try:
        parameters = parse(request, format_)
    except Refused as refused:
        return bad_request(str(refused))
    selected = await console.select(parameters.selection)
    if parameters.format == "prometheus":
        return Response(200, prometheus.render(selected, console.namer, parameters.buckets == render.SUMMARY), TEXT)
    if parameters.format == "json":
        return Response(200, render.as_json(selected, parameters.buckets), JSON)
    text = render.text(selected, parameters.buckets)
    if parameters.format == "text":
        return Response(200, text, TEXT)
    return Response(200, _page(text, parameters.format == "active-html"), HTML)


def _page(text: str, active: bool) -> str:
    refresh = f'<meta http-equiv="refresh" content="{REFRESH}">' if active else ""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Statistics</title>{refresh}'
            f"</head>\n<body>\n<pre>\n{html.escape(text, quote=False)}</pre>\n</body>\n</html>\n")
