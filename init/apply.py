"""A plan into the kernel: look, decide, write each place in one step, check, and undo everything on any failure."""

from dataclasses import dataclass, field

from init import routing
from init.backends.base import Backend, Holding
from init.backends.choice import Backends, Held, choose, holders
from init.backends.iptables import IptablesBackend
from init.errors import KernelError
from init.lock import namespace_lock
from init.log import Log
from init.rules import DIVERT, VERSIONS, Plan
from init.settings import Settings
from init.transaction import ReplaceRules, Step, difference, perform

CAP_NET_ADMIN = 12


@dataclass(slots=True)
class Outcome:
    """What a run did; `backend` is the kind that holds the rules now."""

    backend: str = ""
    changed: bool = False
    steps: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def apply(plan: Plan, settings: Settings, backends: Backends, log: Log) -> Outcome:
    """Make the kernel hold exactly the rules of `plan`; do nothing if it does already.

    Rules of an earlier run with other flags are replaced under `reconcile` and else refused. Raises KernelError; the
    rules, addresses, policy rules and routes are then those of before.
    """
    require_net_admin()
    with namespace_lock(lambda: log.info("waiting for another run in this network namespace to end")):
        held = holders(backends, plan, log)
        backend = choose(settings, backends, held)
        network = routing.wanted(
            ipv6=plan.ipv6, active=settings.routes_inbound, mark=settings.tproxy_mark, table=settings.tproxy_table
        )
        holder = _satisfied_by(plan, held, backends)
        if holder is not None and (holder is backend or not settings.reconcile):
            backend = holder
            if not settings.force_apply:
                return _nothing_but_network(plan, backend, network, log)
        elif held and not settings.reconcile:
            raise KernelError(*_refusal(plan, held, backend))
        return _write(plan, settings, backend, held, network, log)


def require_net_admin() -> None:
    """Raise KernelError unless this process may change the network."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            capabilities = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    except OSError:
        return  # no /proc: the programs will say what is missing
    if not capabilities >> CAP_NET_ADMIN & 1:
        raise KernelError(
            "the capability NET_ADMIN is missing: run as root, with NET_ADMIN and NET_RAW among the container's "
            "securityContext.capabilities.add"
        )


def _satisfied_by(plan: Plan, held: list[Held], backends: Backends) -> Backend | None:
    """The one kind whose stores hold exactly the plan while no other holds anything of ours."""
    kinds = {entry.kind for entry in held}
    if len(kinds) != 1:
        return None
    backend = backends.get(kinds.pop())
    present = {id(entry.store): entry.holding for entry in held}
    for store in backend.stores(plan):
        if present.pop(id(store), Holding()).lines != store.wanted(plan).lines:
            return None
    return None if present else backend


def _nothing_but_network(plan: Plan, backend: Backend, network: routing.Objects, log: Log) -> Outcome:
    """The rules are there; addresses, policy rules and routes that have gone since come back."""
    steps = [routing.Create(missing) for missing in routing.missing(network)]
    perform(steps)
    names = " and ".join(store.name for store in backend.stores(plan))
    summary = ", ".join(store.wanted(plan).summary() for store in backend.stores(plan))
    if steps:
        log.info(f"{names} already holds {summary}; done: {'; '.join(step.what for step in steps)}")
    else:
        log.info(f"nothing to do: {names} already holds {summary}")
    return Outcome(backend.kind, bool(steps), [step.what for step in steps])


def _refusal(plan: Plan, held: list[Held], backend: Backend) -> list[str]:
    lines = []
    for entry in held:
        same_kind = entry.kind == backend.kind
        here = [store for store in (backend.stores(plan) if same_kind else ()) if store.name == entry.store.name]
        lines += difference(entry.holding, here[0].wanted(plan) if here else Holding())
    present = {entry.store.name for entry in held}
    for store in backend.stores(plan):
        if store.name not in present:
            lines += difference(Holding(), store.wanted(plan))
    names = " and ".join(dict.fromkeys(entry.store.name for entry in held))
    others = f", which --backend {backend.kind} would not use" if all(e.kind != backend.kind for e in held) else ""
    return [
        f"{names} holds rules of a run with other flags{others}: remove them with istio-clean-iptables, or replace "
        "them with --reconcile (- present, + wanted):\n" + "\n".join(lines)
    ]


def _write(
    plan: Plan, settings: Settings, backend: Backend, held: list[Held], network: routing.Objects, log: Log
) -> Outcome:
    stores = list(backend.stores(plan))
    targets = {id(store) for store in stores}
    present = {id(entry.store): entry.holding for entry in held}
    steps: list[Step] = [routing.Create(missing) for missing in routing.missing(network)]
    # Before the rules whose marks tell that they are ours: a run that is killed here can be repeated.
    steps += [routing.Remove(stale) for stale in _stale(network, settings, held)]
    steps += [ReplaceRules(store, present.get(id(store), store.holding(plan)), plan) for store in stores]
    steps += [ReplaceRules(entry.store, entry.holding, None) for entry in held if id(entry.store) not in targets]
    perform(steps)
    for store in stores:
        log.info(f"{store.name}: installed {store.wanted(plan).summary()}")
    for step in steps:
        if not isinstance(step, ReplaceRules) or step.plan is None:
            log.info(f"done: {step.what}")
    _make_empty_table(plan, backend, log)
    return Outcome(backend.kind, True, [step.what for step in steps])


def _stale(network: routing.Objects, settings: Settings, held: list[Held]) -> list[routing.Object]:
    """Policy rules and routes of the rules that are being replaced, and doubles of the wanted ones."""
    if not held:
        return []
    marks = marks_of(held) | {settings.tproxy_mark}
    keep = set(network)
    stale = []
    for found in routing.found(marks, {settings.tproxy_table}):
        if found in keep:
            keep.discard(found)  # one stays; policy rules can be there several times
        else:
            stale.append(found)
    return stale


def marks_of(held: list[Held]) -> set[int]:
    """The packet marks of TPROXY rules in the kernel: what policy rules of ours look for."""
    return {
        int(rule.target.value)
        for entry in held
        for rule in entry.holding.rules
        if rule.chain == DIVERT and rule.target.kind == "mark"
    }


def _make_empty_table(plan: Plan, backend: Backend, log: Log) -> None:
    """Where IPv6 is not captured its nat table is made, empty, as the probe of Istio's program leaves it."""
    if not isinstance(backend, IptablesBackend):
        return
    for version in VERSIONS:
        if version not in plan.versions:
            try:
                backend.store(version).make_table()
            except KernelError as error:
                log.debug(f"IPv6 is not captured, and its tables were left alone: {error}")
