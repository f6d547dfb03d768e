"""A plan into the kernel: compare, write in one step, check, and undo on any failure."""

import difflib

from init.backend import Backend, select
from init.errors import KernelError
from init.lock import namespace_lock
from init.log import Log
from init.netlink import remove_blank_table
from init.plan import IPV6, Plan
from init.render import document, installation
from init.settings import Settings
from init.state import RuleSet, listing, removal, restoration, wanted

CAP_NET_ADMIN = 12
MAX_DIFFERENCE = 50  # lines of wanted and present rules in one error
# Makes the table of a family that holds no rule, as the probe of Istio's program does; nothing else stays of it.
_MAKE_TABLE = document({"nat": ("-N ISTIO_PROBE", "-X ISTIO_PROBE")})


def apply(plan: Plan, settings: Settings, log: Log) -> None:
    """Make the kernel hold exactly the rules of `plan`; do nothing if it does already.

    Rules of an earlier run with other flags are replaced under `reconcile` and else refused. Raises KernelError; the
    rules are then those of before.
    """
    require_net_admin()
    with namespace_lock(lambda: log.info("waiting for another run in this network namespace to end")):
        backend, dump = select(plan.family, settings.force_binary)
        log.debug(f"using {backend.path}")
        target = wanted(plan.rules)
        hidden = sorted(dump.unreadable & target.keys())
        if hidden:
            raise KernelError(
                f"the table {hidden[0]} of this network namespace holds what only the nft program can show, so rules "
                f"in it cannot be checked: remove it with `nft delete table ip {hidden[0]}` if it is not needed"
            )
        present = dump.ours()
        if listing(present) == listing(target) and not settings.force_apply:
            log.info(f"nothing to do: {backend.name} already holds {_count(target)}")
            return
        if present and listing(present) != listing(target) and not settings.reconcile:
            raise KernelError(
                f"{backend.name} holds rules of a run with other flags: remove them with istio-clean-iptables, or "
                f"replace them with --reconcile (- present, + wanted):\n{_difference(present, target)}"
            )
        _write(backend, plan, present, target)
        log.info(f"{backend.name}: installed {_count(target)}")
        _make_table_of_other_family(backend, log)


def require_net_admin() -> None:
    """Raise KernelError unless this process may change the network."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            capabilities = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    except OSError:
        return  # no /proc: the binaries will say what is missing
    if not capabilities >> CAP_NET_ADMIN & 1:
        raise KernelError(
            "the capability NET_ADMIN is missing: run as root, with NET_ADMIN and NET_RAW among the container's "
            "securityContext.capabilities.add"
        )


def _write(backend: Backend, plan: Plan, present: RuleSet, target: RuleSet) -> None:
    expected = present
    try:
        backend.restore(document(removal(present), installation(plan.rules)))
        expected = target
        found = backend.save().ours()
        if listing(found) != listing(target):
            raise KernelError(
                f"{backend.name} reported success but the kernel does not hold the rules (- present, + wanted):\n"
                f"{_difference(found, target)}"
            )
    except BaseException as failure:
        _roll_back(backend, present, expected, failure)
        raise


def _roll_back(backend: Backend, before: RuleSet, expected: RuleSet, failure: BaseException) -> None:
    """Put back what stood before. `expected` is taken for what is there now if the kernel cannot be read."""
    try:
        try:
            now = backend.save().ours()
        except KernelError:
            now = expected
        if listing(now) != listing(before):
            backend.restore(document(removal(now), restoration(before)))
        if backend.kind == "nft" and not before:
            for table in now:
                remove_blank_table(backend.family.version, table)
    except KernelError as error:
        raise KernelError(
            f"{failure}; what was there before could not be put back either ({error}): run istio-clean-iptables"
        ) from failure


def _make_table_of_other_family(backend: Backend, log: Log) -> None:
    path = backend.path[: -len(backend.name)] + backend.name.replace(backend.family.program, IPV6.program)
    try:
        Backend(IPV6, backend.kind, path).restore(_MAKE_TABLE)
    except KernelError as error:
        log.debug(f"IPv6 is not captured, and its tables were left alone: {error}")


def _difference(present: RuleSet, target: RuleSet) -> str:
    lines = [
        line
        for line in difflib.unified_diff(listing(present), listing(target), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    more = [f"... and {len(lines) - MAX_DIFFERENCE} lines more"] if len(lines) > MAX_DIFFERENCE else []
    return "\n".join(lines[:MAX_DIFFERENCE] + more)


def _count(rules: RuleSet) -> str:
    chains = sum(len(ours.chains) for ours in rules.values())
    count = sum(len(ours.hooks) + sum(map(len, ours.chains.values())) for ours in rules.values())
    return f"{count} rules and {chains} chains in {', '.join(sorted(rules))}"
