"""config.metrics.v3: tags of statistics, and which statistics exist at all."""

from __future__ import annotations

from collections.abc import Callable

from proxy.config.matchers import string_matcher
from proxy.config.model import BytesPredicate, StatsConfig, StatsTag
from proxy.config.reader import Reader
from proxy.stats.tags import TagError, rules_of

NamePredicate = Callable[[str], bool]


def _tag(use_defaults: bool, reader: Reader) -> StatsTag:
    """metrics.v3.TagSpecifier."""
    tag = StatsTag(reader.string("tag_name"), reader.string("regex"), reader.string("fixed_value"))
    try:
        rules_of(StatsConfig((tag,), use_all_default_tags=use_defaults))
    except TagError as error:
        reader.error("regex", str(error))
    return tag


def _patterns(reader: Reader) -> tuple[BytesPredicate, ...]:
    return reader.each("patterns", string_matcher)


def _matcher(reader: Reader) -> NamePredicate | None:
    """metrics.v3.StatsMatcher as a predicate over names; None: everything is included."""
    kind = reader.chosen("stats_matcher")
    if kind == "reject_all":
        return _nothing if reader.boolean("reject_all") else None
    if kind == "inclusion_list":
        wanted = reader.need(kind, _patterns)
        return lambda name: _any(wanted, name)
    if kind == "exclusion_list":
        unwanted = reader.need(kind, _patterns)
        return lambda name: not _any(unwanted, name)
    return None


def _nothing(name: str) -> bool:
    return False


def _any(patterns: tuple[BytesPredicate, ...], name: str) -> bool:
    octets = name.encode()
    return any(matches(octets) for matches in patterns)


def stats_config(reader: Reader) -> StatsConfig:
    """metrics.v3.StatsConfig."""
    use_defaults = reader.boolean("use_all_default_tags", True)
    return StatsConfig(
        tags=reader.each("stats_tags", lambda tag: _tag(use_defaults, tag)),
        use_all_default_tags=use_defaults,
        included=reader.sub("stats_matcher", _matcher),
    )
