"""What capture needs beside rules: `::6` on lo, and for TPROXY a policy rule and a route that keep packets here.

Values for people and comparisons, steps that create or remove one of them, and a search for what earlier runs of this
program or of Istio's left.
"""

import errno
import ipaddress
import os
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field

from init.errors import KernelError
from init.netlink import addresses, routes, rules
from init.rules import VERSIONS, Version

PASSTHROUGH = "::6/128"  # the proxy's own address for inbound connections; IPv4's, 127.0.0.6, needs no help
_KERNELS_TABLES = frozenset((0, 253, 254, 255))  # unspec, default, main, local: never ours
_GONE = frozenset((errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL))  # there was nothing to remove
_UNKNOWN = frozenset((errno.ETIMEDOUT, errno.ENOBUFS, errno.EBADMSG, errno.EMSGSIZE))  # done or not: no answer came
_NO_POLICY_ROUTING = "this kernel has no {family}, or no policy routing for it: run without TPROXY"


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv6 address, with its prefix length, on lo."""

    address: str
    interface: str = addresses.LO

    @property
    def text(self) -> str:
        """For people."""
        return f"address {self.address} on {self.interface}"


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """`ip rule add fwmark MARK lookup TABLE`. The priority, if known, says which of several equal ones."""

    version: Version
    mark: int
    table: int
    priority: int | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """For people, as `ip rule` prints it."""
        rank = "" if self.priority is None else f"{self.priority}: "
        return f"IPv{self.version} policy rule `{rank}from all fwmark {self.mark:#x} lookup {self.table}`"


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """`ip route add local default dev lo table TABLE`. The metric, if known, says which of several."""

    version: Version
    table: int
    metric: int = field(default=0, compare=False)

    @property
    def text(self) -> str:
        """For people, as `ip route` prints it."""
        return f"IPv{self.version} route `local default dev lo table {self.table}`"


Object = Address | PolicyRule | LocalRoute
Objects = tuple[Object, ...]


def wanted(*, ipv6: bool, active: bool, mark: int, table: int) -> Objects:
    """What a run needs, in the order in which it is made.

    `active`: inbound connections are captured by TPROXY. The route comes before the rule that leads to it, so that no
    packet is sent to a table that is not complete.
    """
    versions = VERSIONS if ipv6 else VERSIONS[:1]
    passthrough = (Address(PASSTHROUGH),) if ipv6 else ()
    if not active:
        return passthrough
    local = tuple(LocalRoute(version, table) for version in versions)
    return passthrough + local + tuple(PolicyRule(version, mark, table) for version in versions)


def missing(objects: Objects) -> Objects:
    """Those that are not in the kernel. Raises KernelError."""
    return tuple(item for item in objects if not _is_present(item))


def found(marks: AbstractSet[int], tables: AbstractSet[int]) -> Objects:
    """What earlier runs left, in the order in which it is to be removed. Raises KernelError.

    Every policy rule that looks at nothing but a whole mark and leads to a table with the route `local default dev lo`,
    if it is one of `marks` or of `tables` (or both, the route being gone); that route of these tables, if nobody else's
    route or policy rule has to do with the table; `::6` on lo.
    """
    policy: list[Object] = []
    local: list[Object] = []
    for version in VERSIONS:
        with _reading(f"the IPv{version} policy rules and routes"):
            ours, theirs = _sorted_rules(version, marks, tables)
            for table in sorted((tables | {rule.table for rule in ours}) - _KERNELS_TABLES - theirs):
                there = routes.of_table(version, table)
                if all(route.keeps_all for route in there):
                    local += (LocalRoute(version, table, route.metric) for route in there)
            policy += (PolicyRule(version, rule.mark, rule.table, rule.priority) for rule in ours)
    with _reading("the addresses of lo"):
        here = ipaddress.ip_interface(PASSTHROUGH) in addresses.on_lo()
    return (*policy, *local, *((Address(PASSTHROUGH),) if here else ()))


def _sorted_rules(
    version: Version, marks: AbstractSet[int], tables: AbstractSet[int]
) -> tuple[list[rules.Rule], set[int]]:
    """The policy rules that are ours, and the tables that others lead to. Raises OSError."""
    present = rules.all_rules(version)
    keeps_all: dict[int, bool] = {}
    ours = []
    others = set()
    for rule in present:
        known = (rule.mark in marks) + (rule.table in tables)
        if known and _is_whole(rule) and rule.table not in _KERNELS_TABLES:
            if rule.table not in keeps_all:
                keeps_all[rule.table] = any(route.keeps_all for route in routes.of_table(version, rule.table))
            if keeps_all[rule.table] or known == 2:
                ours.append(rule)
                continue
        others.add(rule.table)
    return ours, others


def _is_whole(rule: rules.Rule) -> bool:
    """Whether a rule looks at the whole mark and at nothing else."""
    return rule.plain and rule.mark != 0 and rule.mask == rules.WHOLE


@dataclass(slots=True)
class Create:
    """A step of a run: one thing that is to be there."""

    item: Object
    _made: bool = field(default=False, init=False, repr=False)

    @property
    def what(self) -> str:
        """For the log."""
        return f"add {self.item.text}"

    def do(self) -> None:
        """Create it unless it is there. Raises KernelError."""
        if _is_present(self.item):
            return
        self._made = True  # before it is, for whoever is interrupted meanwhile: it was not there
        try:
            _CREATE[type(self.item)](self.item)
        except OSError as error:
            self._made = error.errno in _UNKNOWN
            if error.errno == errno.EEXIST and _is_present(self.item):
                return  # somebody else was faster
            raise _failure(self.what, self.item, error) from error

    def undo(self) -> None:
        """Remove it if `do` created it. Raises KernelError."""
        if self._made:
            _remove(self.item)
            self._made = False


@dataclass(slots=True)
class Remove:
    """A step of a run or of a cleanup: one thing that is to go."""

    item: Object
    _gone: bool = field(default=False, init=False, repr=False)

    @property
    def what(self) -> str:
        """For the log."""
        return f"remove {self.item.text}"

    def do(self) -> None:
        """Remove it; what is not there is no error. Raises KernelError."""
        self._gone = True
        try:
            self._gone = _remove(self.item)
        except KernelError as error:
            self._gone = isinstance(error.__cause__, OSError) and error.__cause__.errno in _UNKNOWN
            raise

    def undo(self) -> None:
        """Create it as it was if `do` removed it. Raises KernelError."""
        if not self._gone:
            return
        try:
            _CREATE[type(self.item)](self.item)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise _failure(f"put back {self.item.text}", self.item, error) from error
        self._gone = False


def _is_present(item: Object) -> bool:
    with _reading(f"what there is of the {item.text}"):
        match item:
            case Address():
                # lo can have an address but once, with whatever prefix length.
                return any(there.ip == _interface(item).ip for there in addresses.on_lo())
            case PolicyRule():
                return any(_is_same(rule, item) for rule in rules.all_rules(item.version))
            case LocalRoute():
                return any(route.keeps_all for route in routes.of_table(item.version, item.table))


def _is_same(rule: rules.Rule, item: PolicyRule) -> bool:
    numbers = (rule.mark, rule.table) == (item.mark, item.table)
    return _is_whole(rule) and numbers and item.priority in (None, rule.priority)


def _interface(item: Address) -> addresses.Interface:
    return ipaddress.ip_interface(item.address)


def _create_address(item: Address) -> None:
    addresses.add_to_lo(_interface(item))


def _create_rule(item: PolicyRule) -> None:
    if item.priority is not None and _is_present(item):
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    rules.add(item.version, item.mark, item.table, item.priority)


def _create_route(item: LocalRoute) -> None:
    routes.add_local_default(item.version, item.table, item.metric)


def _remove_address(item: Address) -> None:
    addresses.delete_from_lo(_interface(item))


def _remove_rule(item: PolicyRule) -> None:
    """Delete the rule of its priority, or the newest of several.

    Raises OSError; and KernelError where the kernel would take another rule, which it cannot tell from this one.
    """
    present = rules.all_rules(item.version)
    same = [rule for rule in present if _is_same(rule, item)]
    if not same:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    rule = same[0]  # without a priority the kernel puts a rule before all others
    rank = (rule.priority, rule.mark, rule.table)
    first = next(other for other in present if (other.priority, other.mark, other.table) == rank)
    if not _is_whole(first):
        raise KernelError(
            f"cannot remove {PolicyRule(item.version, *rank[1:], rule.priority).text}: another rule of the same "
            "priority, mark and table, which also looks at something else, stands before it and would be removed "
            "instead: see `ip rule`"
        )
    rules.delete(item.version, rule.mark, rule.table, rule.priority)


def _remove_route(item: LocalRoute) -> None:
    routes.delete_local_default(item.version, item.table, item.metric)


_CREATE: dict[type, Callable[..., None]] = {
    Address: _create_address,
    PolicyRule: _create_rule,
    LocalRoute: _create_route,
}
_REMOVE: dict[type, Callable[..., None]] = {
    Address: _remove_address,
    PolicyRule: _remove_rule,
    LocalRoute: _remove_route,
}


def _remove(item: Object) -> bool:
    """Whether it was there. Raises KernelError."""
    try:
        _REMOVE[type(item)](item)
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise _failure(f"remove {item.text}", item, error) from error
    return True


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KernelError(f"cannot read {what}: {error.strerror}") from error


def _failure(what: str, item: Object, error: OSError) -> KernelError:
    """One line: what failed, why, and what to do."""
    family = f"IPv{item.version}" if not isinstance(item, Address) else "IPv6"
    advice = {
        errno.EPERM: "run as root with the capability NET_ADMIN in this network namespace",
        errno.EACCES: "IPv6 is switched off: set sysctl net.ipv6.conf.lo.disable_ipv6=0, or capture IPv4 only",
        errno.ENETDOWN: "set lo up: `ip link set lo up`",
        errno.ENODEV: "this network namespace has no interface lo",
        errno.EAFNOSUPPORT: _NO_POLICY_ROUTING.format(family=family),
        errno.EOPNOTSUPP: _NO_POLICY_ROUTING.format(family=family),
    }
    hint = advice.get(error.errno or 0, "")
    if error.errno == errno.EEXIST and isinstance(item, LocalRoute):
        hint = "the table has another default route: choose another one with -r"
    return KernelError(f"cannot {what}: {error.strerror}{f': {hint}' if hint else ''}")
