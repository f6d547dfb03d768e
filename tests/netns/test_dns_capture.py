"""DNS capture as a pod sees it: real resolver libraries, real rules, a real resolver behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .dns_world import BIG, OUTSIDE, OUTSIDE6, POD, POD6, PROXY_UID, SHOP, TABLE, DnsWorld, dns_world, names

pytestmark = pytest.mark.netns

RESOLVE_C = r"""
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include <arpa/inet.h>
int main(int count, char **words) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    char text[64];
    int error = getaddrinfo(words[1], 0, &hints, &found);
    if (error) { puts(gai_strerror(error)); return 2; }
    for (; found; found = found->ai_next) {
        void *address = found->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
                                                    : (void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
        puts(inet_ntop(found->ai_family, address, text, sizeof text));
    }
}
"""
RESOLVE_GO = r"""
package main
import ("context"; "fmt"; "net"; "os")
func main() {
    resolver := net.Resolver{PreferGo: true}
    found, err := resolver.LookupHost(context.Background(), os.Args[1])
    if err != nil { fmt.Println(err); os.Exit(2) }
    for _, address := range found { fmt.Println(address) }
}
"""
GO = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
RESOLVERS = ["glibc", "musl", *(["go"] if GO else [])]


@pytest.fixture(scope="module")
def world() -> Iterator[DnsWorld]:
    with dns_world() as made:
        _compile(made.folder)
        yield made


def _compile(folder: Path) -> None:
    """musl's and Go's resolvers as static programs."""
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc is not installed")
    (folder / "resolve.c").write_text(RESOLVE_C)
    commands = [["musl-gcc", "-static", "-o", "resolve-musl", "resolve.c"]]
    if GO:
        (folder / "resolve.go").write_text(RESOLVE_GO)
        commands.append(["env", "CGO_ENABLED=0", GO, "build", "-o", "resolve-go", "resolve.go"])
    for command in commands:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)


def resolve(world: DnsWorld, library: str, name: str) -> set[str]:
    """All addresses of a name; empty when it does not exist."""
    if library == "glibc":
        done = world.app("getent", "ahosts", name)
        return {line.split()[0] for line in done.stdout.splitlines()}
    done = world.app(str(world.folder / f"resolve-{library}"), name)
    return set(done.stdout.split()) if done.returncode == 0 else set()


@pytest.mark.parametrize("library", RESOLVERS)
def test_what_applications_resolve(world: DnsWorld, library: str) -> None:
    expected = {
        "reviews": {"10.96.0.13"},
        "reviews.bookinfo": {"10.96.0.13"},
        "reviews.bookinfo.svc": {"10.96.0.13"},
        "reviews.bookinfo.svc.cluster.local": {"10.96.0.13"},
        "reviews.bookinfo.svc.cluster.local.": {"10.96.0.13"},
        "REVIEWS.bookinfo": {"10.96.0.13"},
        "dual": {"10.96.0.20", "fd00:96::20"},
        "pair": {"10.96.0.21", "10.96.0.22"},
        "shop.example": {SHOP},
        "a.b.wild.example": {"240.240.0.8"},
        "outside.test": {OUTSIDE, OUTSIDE6},
        "nowhere.test": set(),
        "wild.example": set(),
        "big.test": set(BIG),
    }
    found = {name: resolve(world, library, name) for name in expected}
    if library == "musl":  # takes 48 addresses at most, and of a truncated answer what there is
        assert found["big.test"] and found["big.test"] <= expected.pop("big.test")
        del found["big.test"]
    assert found == expected


def test_names_of_the_mesh_never_reach_the_resolver(world: DnsWorld) -> None:
    for kind in ("A", "AAAA", "MX", "HTTPS", "SRV"):
        world.dig("reviews.bookinfo.svc.cluster.local", kind)
    assert world.asked("reviews.bookinfo.svc.cluster.local") == 0


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig(world: DnsWorld, transport: str) -> None:
    assert world.dig("shop.example", transport) == [SHOP]
    assert world.dig("outside.test", "TXT", transport) == ['"hello"']
    assert world.dig("-x", SHOP, transport) == ["shop.example."]
    assert sorted(world.dig("big.test", transport)) == sorted(BIG)


def test_an_answer_that_does_not_fit_is_truncated(world: DnsWorld) -> None:
    done = world.app("dig", "+noedns", "+ignore", "+tries=1", "big.test")
    flags = re.search(r";; flags: ([a-z ]+);", done.stdout)
    assert flags is not None and "tc" in flags[1].split(), done.stdout
    size = re.search(r"MSG SIZE\s+rcvd: (\d+)", done.stdout)
    assert size is not None and int(size[1]) <= 512


def test_a_name_by_its_auto_allocated_address_to_the_service(world: DnsWorld) -> None:
    done = world.app("curl", "-s", "--max-time", "10", "http://shop.example/page")
    assert done.stdout == "the page of the shop\n", done.stderr
    assert "listener.240.240.0.7_80.downstream_cx_total: 1" in world.get(15000, "/stats?filter=downstream_cx_total")


def test_the_proxys_own_queries_go_straight_out(world: DnsWorld) -> None:
    assert world.dig("shop.example", uid=PROXY_UID) == []  # the resolver does not know it
    assert world.dig("outside.test", "+tcp", uid=PROXY_UID) == [OUTSIDE]
    before = world.asked("outside.test")
    assert world.dig("outside.test", uid=PROXY_UID) == [OUTSIDE]
    assert world.asked("outside.test") == before + 1


def test_answers_are_kept_as_long_as_they_are_good(world: DnsWorld) -> None:
    counts = set()
    for _ in range(20):
        assert world.dig("short.test") == ["10.7.7.7"]
        counts.add(world.asked("short.test"))
    assert max(counts) <= 4  # each worker has a cache, 5 s may pass


def test_statistics_on_the_merged_page(world: DnsWorld) -> None:
    world.dig("reviews.bookinfo.svc.cluster.local")
    page = world.get(15020, "/stats/prometheus")
    for name in ("dns_requests_total", "dns_upstream_requests_total"):
        value = re.search(rf"^istio_agent_{name}(\{{.*\}})? (\d+)$", page, re.M)
        assert value is not None and int(value[2]) > 0, name


def test_the_operator_is_told_why(world: DnsWorld) -> None:
    told = world.get(15000, "/dns?name=reviews.bookinfo")
    assert "10.96.0.13" in told and "reviews.bookinfo.svc.cluster.local" in told
    assert OUTSIDE in world.get(15000, "/dns?name=outside.test")


def test_a_new_table_takes_effect_whole(world: DnsWorld) -> None:
    world.write_table(names(**{"ratings": ["10.96.0.99"], "shop.example": [SHOP]}))
    try:
        world.eventually("the new name", lambda: world.dig("ratings.bookinfo.svc.cluster.local") == ["10.96.0.99"])
        assert world.dig("reviews.bookinfo.svc.cluster.local") == []
        world.write_table({"table": {"x.example": {"ips": 7}}})
        world.eventually("the bad table is refused", lambda: "x.example" in world.log)
        assert world.dig("ratings.bookinfo.svc.cluster.local") == ["10.96.0.99"]
    finally:
        world.write_table(TABLE)
        world.eventually("the old name", lambda: world.dig("reviews.bookinfo.svc.cluster.local") == ["10.96.0.13"])


def test_a_worker_that_dies_is_missed_by_nobody(world: DnsWorld) -> None:
    before = world.workers()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    world.eventually("there is another", lambda: len(set(world.workers()) - {before[0]}) == 2)
    for _ in range(10):  # each from another port, so both workers are asked
        assert world.app("dig", "+short", "+tries=3", "+time=1", "shop.example").stdout == f"{SHOP}\n"


def test_before_the_table_comes_the_resolver_answers_and_the_pod_is_not_ready() -> None:
    with dns_world("--capture-all-dns", table=None) as world:
        assert world.dig("outside.test") == [OUTSIDE]
        for transport in ("+notcp", "+tcp"):  # whomever it asks: nobody is there
            assert world.dig("outside.test", transport, "@203.0.113.9") == [OUTSIDE]
        assert world.dig("shop.example") == []
        assert not world.is_ready()
        assert "Envoy proxy is NOT ready: DNS lookup table is not ready yet" in world.log
        world.write_table(TABLE)
        world.eventually("the sidecar is ready", world.is_ready)
        assert world.dig("shop.example") == [SHOP]


def test_over_ipv6() -> None:
    with dns_world("--dual-stack", resolvers=(OUTSIDE6, OUTSIDE)) as world:
        for transport in ("+notcp", "+tcp"):
            assert world.dig("shop.example", transport, f"@{OUTSIDE6}") == [SHOP]
            assert world.dig("outside.test", "AAAA", transport, f"@{OUTSIDE6}") == [OUTSIDE6]
        assert resolve(world, "glibc", "dual") == {"10.96.0.20", "fd00:96::20"}


def test_port_53_of_every_address() -> None:
    """As on a virtual machine, without rules for DNS. dig takes an answer from the address that it asked only."""
    with dns_world(uid=0, DNS_PROXY_ADDR=":53") as world:
        for address in (POD, "127.0.0.1", "127.0.0.5", POD6, "::1"):
            for transport in ("+notcp", "+tcp"):
                assert world.dig("shop.example", transport, f"@{address}") == [SHOP]
        assert world.dig("outside.test", "@127.0.0.1") == [OUTSIDE]
