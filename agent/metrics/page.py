"""The page at /stats/prometheus: asks the sources at the same time and merges what they say.

A source that is down, slow, too large or broken is left out, logged and counted; the page is 200 without it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent import log
from agent.errors import AgentError
from agent.http.client import request
from agent.http.dial import LOCALHOST
from agent.http.exchange import Budget, HttpError, Response
from agent.http.redirect import LeavesHost, Place, follow
from agent.metrics.annotations import Target
from agent.metrics.exposition import BadDocument, Family, Format, Reader
from agent.metrics.merge import Merger
from agent.metrics.negotiate import OPENMETRICS, negotiate
from agent.metrics.own import OwnMetrics
from agent.status.compression import decompress

MAX_BODY = 10 * 1024 * 1024  # of one source
MAX_ALL_BODIES = 32 * 1024 * 1024  # of all sources of one page
# Of all documents of one page: a family without anything else takes half a kilobyte of memory. 10 MiB of ordinary
# series have 100,000 lines.
MAX_ALL_LINES = 400_000
MAX_AT_ONCE = 2  # pages: each may hold that much
MAX_WAITING = 16
DEFAULT_TIMEOUT_S = 10.0  # without X-Prometheus-Scrape-Timeout-Seconds: Prometheus' own default
_LONGEST_TIMEOUT_S = 300.0
_SHARE = 0.9  # of the scraper's time that a source may take: the rest is for what the others said to get there in time
_MAX_REDIRECTS = 5
_PIECE = 2000  # lines between two turns of the event loop
_REPEAT_S = 60.0

TIMEOUT_HEADER = "x-prometheus-scrape-timeout-seconds"

_log = log.scope()


class Busy(AgentError):
    """More pages are asked for than there is memory for."""


@dataclass(frozen=True, slots=True)
class Source:
    """One page to be merged. `kind` is what Istio calls it: envoy or application."""

    kind: str
    port: int
    path: str
    hosts: tuple[str, ...] = LOCALHOST

    @property
    def name(self) -> str:
        return f"http://localhost:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Ask:
    """What of a scrape matters for the sources."""

    query: str = ""
    accept: str = ""
    user_agent: str = ""
    timeout: str = ""  # X-Prometheus-Scrape-Timeout-Seconds


@dataclass(frozen=True, slots=True)
class Page:
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class _Document:
    source: str
    kind: str
    format: Format
    body: bytes


class MetricsPage:
    """Makes merged pages. One for the life of the agent."""

    def __init__(
        self,
        own: OwnMetrics,
        *,
        proxy_port: int | None,
        targets: Sequence[Target],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`proxy_port`: where the proxy has /stats/prometheus, None leaves it out. `targets`: the application's."""
        self._own = own
        self._proxy = None if proxy_port is None else Source("envoy", proxy_port, "/stats/prometheus")
        self._targets = tuple(Source("application", target.port, target.path) for target in targets)
        self._now = now
        self._turn = asyncio.Semaphore(MAX_AT_ONCE)
        self._waiting = 0
        self._logged: dict[str, float] = {}
        own.count("scrapes_total", "The total number of scrapes.", 0)

    async def page(self, ask: Ask) -> Page:
        """Raises Busy when too many are being made; nothing else.

        The time until it is this one's turn is time that the sources do not have any more.
        """
        if self._waiting >= MAX_WAITING:
            raise Busy("too many metric pages are asked for at once")
        self._waiting += 1
        ends = asyncio.get_running_loop().time() + source_timeout_s(ask.timeout)
        try:
            async with asyncio.timeout_at(ends):
                await self._turn.acquire()
            try:
                return await self._make(ask, ends)
            finally:
                self._turn.release()
        except TimeoutError:
            raise Busy("the metric pages that were asked for before take too long") from None
        finally:
            self._waiting -= 1

    async def _make(self, ask: Ask, ends: float) -> Page:
        self._own.count("scrapes_total", "The total number of scrapes.")
        accepts = negotiate(ask.accept)
        budget = Budget(MAX_ALL_BODIES)
        asked = [self._scrape(self._proxy, accepts.proxy, ask, budget, ends)] if self._proxy is not None else []
        asked += [self._scrape(target, accepts.application, ask, budget, ends) for target in self._targets]
        answers = await asyncio.gather(*asked)
        documents = [answer for answer in answers if answer is not None]
        page = _page_format([each.format for each in documents if each.kind == "application"], accepts.openmetrics)
        read = []
        left = MAX_ALL_LINES
        for document in documents:
            families, count = await self._read(document, page, left)
            left -= count
            if families:
                read.append((document, families))
        for own in self._own_document():  # last, so that it tells of the failures of this scrape too
            read.insert(0, (own, (await self._read(own, page, MAX_ALL_LINES))[0]))
        merger = Merger(page)
        for document, families in read:
            for dropped, why in merger.add(families):
                if dropped:
                    self._dropped(document, dropped, why)
                await asyncio.sleep(0)
        return Page(page.value, b"".join(merger.render()))

    def _own_document(self) -> Iterable[_Document]:
        try:
            return (_Document("the agent", "agent", Format.TEXT, self._own.page()),)
        except Exception as error:  # a collector reads /proc, which may be forbidden
            self._failed("agent", "the agent", repr(error))
            return ()

    async def _read(self, document: _Document, page: Format, max_lines: int) -> tuple[list[Family], int]:
        """The families of a document and the number of its lines; none when anything in it is bad: it gets in as a
        whole or not at all.
        """
        reader = Reader(document.format, page)
        count = document.body.count(b"\n") + 1
        try:
            if count > max_lines:
                raise BadDocument(f"with it the page would have more than {MAX_ALL_LINES} lines")
            for lines in _pieces(document.body):
                reader.feed(lines)
                await asyncio.sleep(0)
            return list(reader.families()), count
        except BadDocument as error:
            self._failed(document.kind, document.source, f"bad metrics: {error}")
            return [], 0

    async def _scrape(self, source: Source, accept: str, ask: Ask, budget: Budget, ends: float) -> _Document | None:
        timeout_s = source_timeout_s(ask.timeout)
        path = f"{source.path}?{ask.query}" if source.kind == "envoy" and ask.query else source.path
        headers = [("accept", accept), ("accept-encoding", "identity")]
        headers += [("user-agent", ask.user_agent)] if ask.user_agent else []
        headers += [(TIMEOUT_HEADER, ask.timeout)] if ask.timeout else []
        try:
            async with asyncio.timeout_at(ends):
                response = await _get(source, path, headers, timeout_s, budget)
            if response.status != 200:
                raise HttpError(f"status {response.status}")
            body = response.body
            if response.header(b"content-encoding").lower() in ("gzip", "x-gzip", "deflate"):
                body = decompress(body, MAX_BODY)
                budget.take(len(body))
            body.decode("utf-8")
        except TimeoutError:
            self._failed(source.kind, source.name, f"no answer within {timeout_s:g}s")
        except UnicodeDecodeError as error:
            self._failed(source.kind, source.name, f"bad metrics: not UTF-8 at byte {error.start}")
        except (HttpError, ValueError) as error:
            self._failed(source.kind, source.name, str(error))
        else:
            return _Document(source.name, source.kind, _format_of(response.header(b"content-type")), body)
        return None

    def _failed(self, kind: str, name: str, why: str) -> None:
        self._own.count("scrape_failures_total", "The total number of failed scrapes.", type=kind)
        self._note(f"scraping {name} failed: {why}")

    def _dropped(self, document: _Document, dropped: int, why: str) -> None:
        text = "Series left out of the merged page since another source has them or their name in another way."
        self._own.count("scrape_dropped_series_total", text, dropped, type=document.kind)
        self._note(f"metrics of {document.source} left out: {why}")

    def _note(self, text: str) -> None:
        """Log it, once a minute; scrapes come for ever."""
        now = self._now()
        if now - self._logged.get(text, -math.inf) < _REPEAT_S:
            return
        if len(self._logged) >= 256:
            self._logged.clear()
        self._logged[text] = now
        _log.error(text)


async def _get(source: Source, path: str, headers: list[tuple[str, str]], timeout_s: float, budget: Budget) -> Response:
    """GET; redirects are followed within the port's host (`/metrics` to `/metrics/` is common)."""
    place = Place(False, "localhost", source.port, path, f"localhost:{source.port}")
    for _ in range(_MAX_REDIRECTS + 1):
        response = await request(
            "GET",
            source.hosts,
            place.port,
            place.target,
            timeout_s=timeout_s,
            max_body=MAX_BODY,
            host=place.host,
            headers=headers,
            budget=budget,
        )
        try:
            following = follow(response, place)
        except LeavesHost:
            raise HttpError("redirected to another host") from None
        if following is None:
            return response
        if following.tls or following.port != source.port:
            raise HttpError("redirected to another port")
        place = following
    raise HttpError(f"stopped after {_MAX_REDIRECTS} redirects")


def source_timeout_s(header: str) -> float:
    """How long a source may take, from the scraper's own limit, so that the page comes in time without it."""
    try:
        seconds = float(header)
    except ValueError:
        return DEFAULT_TIMEOUT_S * _SHARE
    if not 0 < seconds < math.inf:
        return DEFAULT_TIMEOUT_S * _SHARE
    return min(seconds, _LONGEST_TIMEOUT_S) * _SHARE


def _pieces(body: bytes) -> Iterator[list[bytes]]:
    """Lines in lists of _PIECE, without a list of all of them."""
    at, lines = 0, []
    while at < len(body):
        end = body.find(b"\n", at)
        end = len(body) if end < 0 else end
        lines.append(body[at:end])
        at = end + 1
        if len(lines) == _PIECE:
            yield lines
            lines = []
    yield lines


def _format_of(content_type: str) -> Format:
    media_type, *parameters = (part.strip() for part in content_type.lower().split(";"))
    if media_type != OPENMETRICS:
        return Format.TEXT
    return Format.OPENMETRICS_001 if "version=0.0.1" in parameters else Format.OPENMETRICS


def _page_format(formats: Sequence[Format], openmetrics: bool) -> Format:
    """OpenMetrics where the application speaks it on all of its pages and the scraper takes it, else text."""
    if not openmetrics or not formats or not all(each.is_open for each in formats):
        return Format.TEXT
    return Format.OPENMETRICS_001 if Format.OPENMETRICS_001 in formats else Format.OPENMETRICS
