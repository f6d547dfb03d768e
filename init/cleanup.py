"""Remove every trace of earlier runs, whatever their flags: it goes by what is in the kernel, not by a plan."""

from collections.abc import Callable

from init.apply import require_net_admin
from init.backend import Backend, has_legacy_tables, installed, not_installed
from init.errors import KernelError
from init.lock import namespace_lock
from init.log import Log
from init.netlink import remove_blank_table
from init.plan import IPV4, IPV6, Family
from init.render import document
from init.settings import Settings
from init.state import Dump, RuleSet, listing, removal


def clean_up(settings: Settings, log: Log, show: Callable[[str], None]) -> None:
    """Remove our chains and the rules that jump to them, in both families and with all installed binaries.

    Says what was removed. With `dry_run` only `show`s the restore text for each of the binaries. Raises KernelError
    if something may have stayed, after the rest was removed.
    """
    require_net_admin()
    problems: list[str] = []
    with namespace_lock(lambda: log.info("waiting for another run in this network namespace to end")):
        removed = [
            _clean_family(family, settings, problems, log, show)
            for family in (IPV4, IPV6)  # IPv6 too: an earlier run may have captured it
        ]
    if problems:
        raise KernelError(*problems)
    if not any(removed):
        log.info("nothing to remove: no chain or rule of this program was found")


def _clean_family(
    family: Family, settings: Settings, problems: list[str], log: Log, show: Callable[[str], None]
) -> bool:
    """Whether anything was removed, or would be."""
    found = [b for b in installed(family) if settings.force_binary in ("", b.kind)]
    if not found and family is IPV4:
        problems.append(not_installed(family, settings.force_binary))
    dumps: list[tuple[Backend, Dump]] = []
    failures: list[str] = []
    for backend in found:
        if backend.kind == "legacy" and not has_legacy_tables(family):
            continue  # asking would load its modules, and there is nothing
        try:
            dumps.append((backend, backend.save()))
        except KernelError as error:
            failures.append(str(error))
            log.debug(f"{backend.name} cannot be asked: {error}")
    if found and not dumps and family is IPV4 and failures:
        problems.extend(failures)
    removed = [_clean(backend, dump, settings, problems, log, show) for backend, dump in dumps]
    return any(removed)


def _clean(
    backend: Backend, dump: Dump, settings: Settings, problems: list[str], log: Log, show: Callable[[str], None]
) -> bool:
    ours = dump.ours()
    if "nat" in dump.unreadable:
        problems.append(f"{backend.name} cannot show the table nat, which holds what only the nft program can show")
    if settings.dry_run:
        if ours:
            show(f"# {backend.name}-restore --noflush\n{document(removal(ours))}")
        return bool(ours)
    try:
        if ours:
            backend.restore(document(removal(ours)))
            left = backend.save().ours()
            if left:
                problems.append(f"{backend.name} reported success but left: {'; '.join(listing(left))}")
            else:
                _report(backend, ours, log)
    except KernelError as error:
        problems.append(str(error))
    if backend.kind == "nft":
        for table in sorted({"nat", *ours}):  # nat: made empty where a family was not captured
            if remove_blank_table(backend.family.version, table):
                log.debug(f"removed from {backend.name}: the table {table}, which held nothing")
    return bool(ours)


def _report(backend: Backend, ours: RuleSet, log: Log) -> None:
    for table, part in sorted(ours.items()):
        for hook in part.hooks:
            log.info(f"removed from {backend.name}, table {table}: rule -A {hook.chain} {hook.specification}")
        for chain, rules in part.chains.items():
            size = "1 rule" if len(rules) == 1 else f"{len(rules)} rules"
            log.info(f"removed from {backend.name}, table {table}: chain {chain} with {size}")
