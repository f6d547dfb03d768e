"""A listener with real sockets: listener filters, the choice of a chain, running out of descriptors, draining."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from proxy.config import model
from proxy.config.model import FilterChainMatch, SocketAddress
from proxy.dataplane import BindError
from proxy.listener import accept, listener_filters
from proxy.options import Options
from tests.unit.listener.plane import Client, Plane, Upstream, cluster, listener, plane, run, tcp_chain, until

HTTP_INSPECTOR = model.ListenerFilter(model.HTTP_INSPECTOR_FILTER)
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def sniffing(**settings: Any) -> model.Listener:
    return listener(tcp_chain(name="http", match=FilterChainMatch(application_protocols=("http/1.1",))),
                    tcp_chain(name="other"), listener_filters=(HTTP_INSPECTOR,), **settings)


async def exchange(up: Upstream, client: Client, sent: bytes) -> None:
    """The upstream gets what was sent, and its answer arrives."""
    server = await up.accept()
    assert await server.read(len(sent)) == sent
    await server.send(b"answer")
    server.finish()
    assert await client.rest() == b"answer"
    client.close()
    assert await server.rest() in (b"", None)
    server.close()


def queued(address: SocketAddress, count: int) -> list[Client]:
    """Connections in the kernel's queue: made without giving the loop a chance to accept."""
    socks = [socket.create_connection(address) for _ in range(count)]
    for sock in socks:
        sock.setblocking(False)
    return [Client(sock) for sock in socks]


@pytest.mark.parametrize(("data", "chain"), [(REQUEST, "http"), (b"\x16\x03\x01", "other"), (b"EHLO x\r\n", "other")])
def test_sniffed_bytes_choose_the_chain_and_are_not_lost(tmp_path: Path, data: bytes, chain: str) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [sniffing()], [cluster(up.address)]) as proxy:
            await exchange(up, await proxy.connect(data), data)
            assert (await proxy.logged())[0].startswith(f"{chain} ")
        up.close()

    run(scene())


def test_sniffing_wakes_once_for_each_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wakes = 0
    readable = listener_filters.ActiveTcpSocket._readable

    def counted(self: listener_filters.ActiveTcpSocket) -> None:
        nonlocal wakes
        wakes += 1
        readable(self)

    async def scene() -> None:
        nonlocal wakes
        up = Upstream()
        async with plane(tmp_path, [sniffing()], [cluster(up.address)]) as proxy:
            client = await proxy.connect()
            await until(lambda: proxy.stat("listener.l.downstream_pre_cx_active") == 1)
            for number in range(len(REQUEST) - 2):
                await client.send(REQUEST[number:number + 1])
                await until(lambda seen=number + 1: wakes >= min(seen, len(REQUEST) - 3))
            await client.send(REQUEST[-2:])
            await exchange(up, client, REQUEST)
            assert wakes <= len(REQUEST)
            assert proxy.stat("http_inspector.http11_found") == 1
            assert proxy.stat("listener.l.downstream_pre_cx_active") == 0
        up.close()

    monkeypatch.setattr(listener_filters.ActiveTcpSocket, "_readable", counted)
    run(scene())


def test_a_half_close_while_sniffing_means_not_http(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [sniffing()], [cluster(up.address)]) as proxy:
            # Once with the end at hand when the bytes are looked at first, once after waiting for more.
            at_once = await Client.connect(proxy.address(), b"QUIT")
            at_once.finish()
            await exchange(up, at_once, b"QUIT")
            waited = await proxy.connect(b"QUIT")
            await until(lambda: proxy.stat("listener.l.downstream_pre_cx_active") == 1)
            waited.finish()
            await exchange(up, waited, b"QUIT")
            assert [line.split()[0] for line in await proxy.logged(2)] == ["other", "other"]
            assert proxy.stat("http_inspector.http_not_found") == 2
        up.close()

    run(scene())


def test_probes_that_close_without_a_byte_reach_nobody(tmp_path: Path) -> None:
    async def scene() -> None:
        async with plane(tmp_path, [sniffing()], [cluster()]) as proxy:
            (await proxy.connect()).close()
            (await proxy.connect(b"GE")).reset()
            await until(lambda: proxy.stat("listener.l.downstream_listener_filter_remote_close") == 2)
            assert proxy.stat("listener.l.downstream_cx_total") == 0
            assert proxy.stat("listener.l.downstream_pre_cx_active") == 0

    run(scene())


@pytest.mark.parametrize("go_on", [False, True])
@pytest.mark.parametrize("data", [b"", b"GET / HTT"])
def test_listener_filters_timeout(tmp_path: Path, data: bytes, go_on: bool) -> None:
    async def scene() -> None:
        up = Upstream()
        one = sniffing(listener_filters_timeout=0.05, continue_on_listener_filters_timeout=go_on)
        async with plane(tmp_path, [one], [cluster(up.address)]) as proxy:
            client = await proxy.connect(data)
            if go_on:
                await exchange(up, client, data)
                assert (await proxy.logged())[0].startswith("other ")
            else:
                assert await client.rest() == (None if data else b"")
                client.close()
            assert proxy.stat("listener.l.downstream_pre_cx_timeout") == 1
        up.close()

    run(scene())


def test_a_protocol_in_which_the_server_speaks_first_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        up = Upstream()
        one = sniffing(listener_filters_timeout=0.0, continue_on_listener_filters_timeout=True)
        async with plane(tmp_path, [one], [cluster(up.address)]) as proxy:
            slow = await proxy.connect(b"GET")
            await until(lambda: proxy.stat("listener.l.downstream_pre_cx_active") == 1)
            await exchange(up, await proxy.connect(), b"")
            # Who has begun to speak is waited for without limit, as configured.
            await slow.send(REQUEST[3:])
            await exchange(up, slow, REQUEST)
            assert [line.split()[0] for line in await proxy.logged(2)] == ["other", "http"]
            assert proxy.stat("listener.l.downstream_pre_cx_timeout") == 0
        up.close()

    monkeypatch.setattr(listener_filters, "SERVER_FIRST_PATIENCE", 0.05)
    run(scene())


def test_a_disabled_listener_filter_does_not_look(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        ports: list[int] = []

        def disabled(port: int) -> bool:
            ports.append(port)
            return True

        one = listener(tcp_chain(), listener_filters=(model.ListenerFilter(model.HTTP_INSPECTOR_FILTER, disabled),))
        async with plane(tmp_path, [one], [cluster(up.address)]) as proxy:
            await exchange(up, await proxy.connect(), b"")
            assert ports == [proxy.address().port]
        up.close()

    run(scene())


def test_no_chain_matches(tmp_path: Path) -> None:
    async def scene() -> None:
        one = listener(tcp_chain(match=FilterChainMatch(destination_port=1)))
        async with plane(tmp_path, [one], [cluster()], log_listener=True) as proxy:
            client = await proxy.connect()
            assert await client.rest() == b""
            client.close()
            assert proxy.stat("listener.l.no_filter_chain_match") == 1
            assert await proxy.logged() == ["- NR filter_chain_not_found 0 0 0 -"]

    run(scene())


def test_the_default_chain_gets_what_nothing_else_matches(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        one = listener(tcp_chain(match=FilterChainMatch(destination_port=1)),
                       default_filter_chain=tcp_chain(name="default"))
        async with plane(tmp_path, [one], [cluster(up.address)], log_listener=True) as proxy:
            await exchange(up, await proxy.connect(b"x"), b"x")
            assert await proxy.logged() == ["default - - 1 6 1 -"]
        up.close()

    run(scene())


def test_additional_addresses_and_ipv6(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        one = listener(tcp_chain())
        both = model.Listener(name="l", addresses=(*one.addresses, SocketAddress("::1", 0)), stat_prefix="l",
                              filter_chains=one.filter_chains)
        async with plane(tmp_path, [both], [cluster(up.address)]) as proxy:
            for index in (0, 1):
                await exchange(up, await Client.connect(proxy.address("l", index), b"x"), b"x")
            await proxy.idle()
            assert proxy.stat("listener.l.downstream_cx_total") == 2
            assert proxy.stat("listener.l.worker_0.downstream_cx_total") == 2
        up.close()

    run(scene())


def test_an_address_in_use_is_told_as_envoy_does(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]

    async def scene() -> None:
        with pytest.raises(BindError, match=rf"^cannot bind '127\.0\.0\.1:{port}': Address already in use$"):
            async with plane(tmp_path, [listener(tcp_chain(), port=port)], []):
                pass

    run(scene())
    taken.close()


def test_out_of_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)]) as proxy:
            warm = await proxy.connect(b"x")
            held = await up.accept()
            waiting = queued(proxy.address(), 3)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # what is open stays usable
            try:
                more = proxy.data_plane.listeners.listeners[0]._sockets[0]
                await until(lambda: more.paused or proxy.stat("listener.l.downstream_cx_active") == 4)
                assert more.paused
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            # The end of a connection is noticed at once: nobody waits for the end of the pause.
            warm.close()
            assert await held.rest() == b"x"
            held.close()
            for client in waiting:
                await client.send(b"y")
                await exchange(up, client, b"y")
        up.close()

    monkeypatch.setattr(accept, "PAUSE", 3600.0)
    run(scene())


async def stopped(proxy: Plane, address: SocketAddress) -> None:
    """The address refuses connections."""
    sockets = [s for one in proxy.data_plane.listeners.listeners for s in one._sockets if s.address == address]
    await until(lambda: not any(s.is_open for s in sockets))
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(address)


def test_drain_serves_what_is_queued_and_keeps_what_is_open(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)]) as proxy:
            address = proxy.address()
            open_before = await proxy.connect(b"a")
            server = await up.accept()
            waiting = queued(address, 10)
            proxy.data_plane.drain_listeners(False, False, False)
            late = socket.socket()
            late.setblocking(False)
            assert late.connect_ex(address) == errno.EINPROGRESS
            await stopped(proxy, address)
            # Its first packet was dropped: nothing of it was ever accepted, so nothing of it can be lost.
            assert late.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x02"  # TCP_SYN_SENT
            late.close()
            for client in waiting:
                await client.send(b"q")
                await exchange(up, client, b"q")
            await open_before.send(b"b")
            assert await server.read(2) == b"ab"
            open_before.close()
            server.close()
        up.close()

    run(scene())


@pytest.mark.parametrize("inbound_only", [True, False])
def test_drain_of_inbound_listeners_only(tmp_path: Path, inbound_only: bool) -> None:
    async def scene() -> None:
        up = Upstream()
        listeners = [listener(tcp_chain(), name="in", traffic_direction="INBOUND"),
                     listener(tcp_chain(), name="out", traffic_direction="OUTBOUND")]
        async with plane(tmp_path, listeners, [cluster(up.address)]) as proxy:
            proxy.data_plane.drain_listeners(inbound_only, False, False)
            await stopped(proxy, proxy.address("in"))
            if inbound_only:
                await exchange(up, await proxy.connect(b"x", "out"), b"x")
            else:
                await stopped(proxy, proxy.address("out"))
        up.close()

    run(scene())


@pytest.mark.parametrize("skip_exit", [True, False])
def test_graceful_drain_closes_the_sockets_after_the_drain_time(tmp_path: Path, skip_exit: bool) -> None:
    async def scene() -> None:
        up = Upstream()
        options = Options(concurrency=1, drain_time=0.05, drain_strategy="immediate")
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)], options) as proxy:
            one = proxy.data_plane.listeners.listeners[0]
            assert not one.draining
            proxy.data_plane.drain_listeners(False, True, skip_exit)
            assert one.draining and one.drain_close()
            await exchange(up, await proxy.connect(b"x"), b"x")
            if skip_exit:
                # Another plain drain is what would close it.
                assert one._close_timer is None
                await exchange(up, await proxy.connect(b"x"), b"x")
            else:
                await until(lambda: one.stopped)
                await stopped(proxy, proxy.address())
        up.close()

    run(scene())


def test_failed_health_drains_all_but_modify_only_listeners(tmp_path: Path) -> None:
    async def scene() -> None:
        listeners = [listener(tcp_chain(), name="a"), listener(tcp_chain(), name="b", modify_only_drain=True)]
        async with plane(tmp_path, listeners, []) as proxy:
            a, b = proxy.data_plane.listeners.listeners
            for failed in (True, False):
                proxy.data_plane.set_health_failed(failed)
                assert (a.draining, a.drain_close(), b.draining, b.drain_close()) == (failed, failed, False, False)

    run(scene())


def descriptors() -> dict[str, str]:
    """Number -> what it is. A socket is told from a later one of the same number by its inode."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[entry.name] = entry.readlink().as_posix()
    return found


def test_a_descriptor_that_was_handed_to_the_loop_is_closed_once(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)]) as proxy:
            await exchange(up, await proxy.connect(b"first"), b"first")
            await proxy.idle()
            before = {what for what in descriptors().values() if what.startswith("socket:")}
            for _ in range(3):
                client = await proxy.connect(b"again")
                mine = [socket.socketpair() for _ in range(5)]  # they get the numbers that become free
                await exchange(up, client, b"again")
                await proxy.idle()
                for one, other in mine:
                    one.send(b"x")
                    assert other.recv(1) == b"x"
                    one.close()
                    other.close()
            await until(lambda: {w for w in descriptors().values() if w.startswith("socket:")} == before)
        up.close()

    run(scene())


class LoopThatOpensNothing:
    """An event loop, but for this."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def connect_accepted_socket(self, *_: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


def test_a_connection_that_the_loop_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)]) as proxy:
            one = proxy.data_plane.listeners.listeners[0]
            with monkeypatch.context() as patch:
                patch.setattr(one, "_loop", LoopThatOpensNothing(one._loop))
                client = await proxy.connect(b"lost")
                assert await client.rest() in (b"", None)
                client.close()
            assert proxy.stat("listener.l.downstream_cx_active") == 0
            await exchange(up, await proxy.connect(b"next"), b"next")
        up.close()

    run(scene())
