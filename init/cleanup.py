"""Remove every trace of earlier runs, whatever their flags: it goes by what is in the kernel, not by a plan."""

from collections.abc import Callable

from init import routing
from init.apply import Outcome, marks_of, require_net_admin
from init.backends.base import Store
from init.backends.choice import Backends, Held, traces
from init.backends.iptables import IptablesBackend
from init.errors import KernelError
from init.iptables_text import line
from init.lock import namespace_lock
from init.log import Log
from init.recipe import make_plan
from init.rules import VERSIONS, Plan
from init.settings import Settings


def clean_up(settings: Settings, backends: Backends, log: Log, show: Callable[[str], None]) -> Outcome:
    """Remove our rules and chains of both families from all backends, policy rules, routes and the address `::6`.

    Says what was removed. With `dry_run` only `show`s the text that would do it. Raises KernelError if something may
    have stayed, after the rest was removed.
    """
    require_net_admin()
    outcome = Outcome()
    problems: list[str] = []
    # What the flags would install helps to recognise rules without a name of ours; all else needs no flags.
    plan = make_plan(settings)
    with namespace_lock(lambda: log.info("waiting for another run in this network namespace to end")):
        held = _held(backends, plan, problems, log)
        network = routing.found(marks_of(held) | {settings.tproxy_mark}, {settings.tproxy_table})
        if settings.dry_run:
            for entry in held:
                show(f"# {entry.store.name}\n{entry.store.script(None, entry.holding)}")
            for item in network:
                show(f"# {routing.Remove(item).what}\n")
            return outcome
        # First what is only found by the marks of the rules: a run that is killed here can be repeated.
        for item in network:
            step = routing.Remove(item)
            if _try(step.do, problems):
                outcome.removed.append(f"{step.what}")
                log.info(f"done: {step.what}")
        for entry in held:
            if _try(lambda entry=entry: _clean(entry, plan), problems):  # type: ignore[misc]
                outcome.removed += _report(entry, log)
        _remove_blank_tables(backends, log)
    outcome.changed = bool(outcome.removed)
    if problems:
        raise KernelError(*problems)
    if not outcome.changed:
        log.info("nothing to remove: no chain, rule, route or address of this program was found")
    return outcome


def _held(backends: Backends, plan: Plan, problems: list[str], log: Log) -> list[Held]:
    """What there is to remove; a store that cannot be read is a problem, not the end."""
    found = []
    for backend in backends.all():
        stores: list[Store] = []
        _try(lambda backend=backend, stores=stores: stores.extend(traces(backend, log)), problems)  # type: ignore[misc]
        for store in stores:
            try:
                holding = store.holding(plan)
            except KernelError as error:
                problems.append(str(error))
                continue
            problems += [
                f"{store.name} cannot show the table {table}, which holds what only the nft program can show"
                for table in store.unreadable()
            ]
            if holding:
                found.append(Held(backend.kind, store, holding))
    return found


def _clean(entry: Held, plan: Plan) -> None:
    entry.store.replace(entry.holding, None)
    left = entry.store.holding(plan)
    if left:
        raise KernelError(f"{entry.store.name} reported success but left: {'; '.join(left.lines)}")


def _try(work: Callable[[], None], problems: list[str]) -> bool:
    try:
        work()
    except KernelError as error:
        problems.append(str(error))
        return False
    return True


def _report(entry: Held, log: Log) -> list[str]:
    """One line for each chain, and for each rule in a chain that stays."""
    own = set(entry.holding.chains)
    lines = []
    for rule in entry.holding.rules:
        if (rule.table, rule.chain) not in own:
            lines.append(f"removed from {entry.store.name}, rule {line(rule)}")
    for table, chain in entry.holding.chains:
        count = sum((rule.table, rule.chain) == (table, chain) for rule in entry.holding.rules)
        size = "1 rule" if count == 1 else f"{count} rules"
        lines.append(f"removed from {entry.store.name}, table {table}: chain {chain} with {size}")
    for text in lines:
        log.info(text)
    return lines


def _remove_blank_tables(backends: Backends, log: Log) -> None:
    """Tables that were made for a family that is not captured, or that our rules were the last contents of."""
    try:
        backend = backends.get("iptables-nft")
        assert isinstance(backend, IptablesBackend)
        for version in VERSIONS:
            for table in backend.store(version).remove_blank_tables():
                log.debug(f"removed from {backend.store(version).name}: the table {table}, which held nothing")
    except KernelError as error:
        log.debug(f"empty tables were left alone: {error}")
