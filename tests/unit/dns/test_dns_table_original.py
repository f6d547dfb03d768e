"""Our table against the original's rules, written down a second time as plain as they are: names stored one by one.

Where several hosts claim a name, the original takes whichever its map gives last; then ours must be one of them. Every
other difference is one of those listed at the top of proxy/dns/table.py, and is checked here as such.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from dns_tables import SEARCH, external, kubernetes
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dns.message import name_to_text, name_to_wire
from proxy.dns.name_table import read_name_table
from proxy.dns.table import compile_table

Answer = tuple[str, str]
"""Host, and the CNAME's target or nothing."""

SERVICES = ".svc.cluster.local."


class Original:
    """pilot-agent's lookup table (pkg/dns/client/dns.go): all names with everything they may be."""

    def __init__(self, document: dict[str, Any], search: str) -> None:
        self.addresses: dict[str, set[str]] = defaultdict(set)
        self.cnames: dict[str, set[Answer]] = defaultdict(set)
        for host, info in document.items():
            aliases = {host + "."}
            if info["registry"] == "Kubernetes" and host.endswith("svc.cluster.local"):
                short, namespace = info["shortname"], info["namespace"]
                aliases |= {f"{short}.{namespace}.", f"{short}.{namespace}.svc."}
                aliases |= {f"{short}."} if namespace == "ns1" else set()
                aliases |= {f"{alias}." for alias in info.get("alt_hosts", ())}
            for alias in aliases:
                self.addresses[alias].add(host)
                expanded = f"{alias}{search}."
                if not alias.endswith(f"{search}.") and expanded not in aliases:
                    self.cnames[expanded].add((host, alias))

    def find(self, name: str) -> tuple[str, set[Answer]]:
        """The name's entry (the wildcard, if it is one) and what it may be answered with."""
        labels = name.split(".")
        for entry in [name, *("*." + ".".join(labels[at:]) for at in range(1, len(labels) - 1))]:
            # CNAMEs are looked at first (trap 42).
            if found := self.cnames.get(entry) or {(host, "") for host in self.addresses.get(entry, ())}:
                return entry, found
        return "", set()


HOSTS = st.lists(st.sampled_from([
    kubernetes("web", "ns1", "10.0.0.1"), kubernetes("web", "ns2", "10.0.0.2"), kubernetes("db", "ns1", "10.0.0.3"),
    kubernetes("db", "prod", "10.0.0.4"), kubernetes("web-0.web", "ns1", "10.0.0.5"),
    kubernetes("web", "ns1", "10.0.0.6", domain="svc.remote.example"),
    kubernetes("alt", "ns2", "10.0.0.7", alt_hosts=["alt.ns2.svc.clusterset.local", "alt"]),
    external("db", "10.1.0.1"), external("db.prod", "10.1.0.2"), external("www.google.com", "10.1.0.3"),
    external("*.google.com", "10.1.0.4"), external("*.com", "10.1.0.5"), external("*.prod", "10.1.0.6"),
    external("web.ns2.svc.cluster.local", "10.1.0.7"), external("*.ns1.svc.cluster.local", "10.1.0.8"),
    external("*.corp.example", "10.1.0.9"), external("db.corp.example", "10.1.0.10"), external("alt", "10.1.0.11"),
]), max_size=9).map(lambda entries: {name: info for entry in entries for name, info in entry.items()})
ASKED = ("web", "web.ns1", "web.ns1.svc", "web.ns1.svc.cluster.local", "web.ns2", "web.ns2.svc.cluster.local", "db",
         "db.prod", "db.prod.svc.cluster.local", "www.google.com", "x.google.com", "x.y.google.com", "google.com",
         "x.prod", "web-0.web", "alt", "alt.ns2.svc.clusterset.local", "x.corp.example", "db.corp.example", "prod",
         "other", "web.ns1.svc.remote.example", "x.ns1.svc.cluster.local", "x.y.ns1.svc.cluster.local")


@settings(max_examples=200, deadline=None)
@given(HOSTS, st.sampled_from(["ns1.svc.cluster.local", "corp.example", "ns2.svc.cluster.local"]))
def test_names_mean_what_they_mean_in_the_original(document: dict[str, Any], search: str) -> None:
    original = Original(document, search)
    # Further search domains add names and take none away.
    tables = [compile_table(read_name_table({"table": document}), "ns1.svc.cluster.local", "ns1", domains)
              for domains in ((search,), (search, *SEARCH))]
    for name in (f"{one}{behind}." for one in ASKED for behind in ("", f".{search}")):
        entry, expected = original.find(name)
        found = tables[0].find(name_to_wire(name))
        ours = None if found is None else (
            found.record.host, "" if found.record.cname is None else name_to_text(found.record.cname))
        service = name.endswith(SERVICES) and name.removesuffix(SERVICES).count(".") == 1
        if entry != name and any(target for _, target in expected):
            # The original's target is the wildcard itself (trap 43); ours is the name behind the search domain.
            expected = {(host, name.removesuffix(f"{search}.")) for host, _ in expected}
        if found is None:
            assert not expected or (service and all(target for _, target in expected)), name
        elif name in original.addresses:
            assert ours is not None and ours[0] in original.addresses[name] and not ours[1], name
        elif ours not in expected:
            # A service's name that nobody has is nobody's CNAME, but a wildcard may have it.
            assert service and found.wildcard and not ours[1], name
        if found is not None and not found.wildcard:
            more = tables[1].find(name_to_wire(name))
            assert more is not None and (more.record.host, more.record.cname) == (ours[0], found.record.cname), name
