"""Tags: the variable parts of a statistic's name, which Prometheus shows as labels (config.metrics.v3.TagSpecifier)."""

from __future__ import annotations

import re
from typing import NamedTuple

from proxy.config.model import StatsConfig

_TOKEN = r"[^.]+"
_ADDRESS = r"(?:\d+\.\d+\.\d+\.\d+_\d+|\[[_a-fA-F\d]*\]_\d+)"
_LISTENER = rf"(?!admin\.)(?:{_ADDRESS}|{_TOKEN})"


class Rule(NamedTuple):
    """How one tag is found in a name: by ``pattern``, or it has the same ``value`` everywhere (pattern None).

    The pattern is searched in the whole name: group 1 is cut out, group 2 (or 1 if there is none) is the value.
    """

    name: str
    pattern: re.Pattern[str] | None
    value: str = ""


def _rule(name: str, pattern: str) -> Rule:
    return Rule(name, re.compile(pattern, re.ASCII))


DEFAULT_RULES = (
    _rule("envoy.response_code", r"_rq(_(\d{3}))$"),
    _rule("envoy.response_code_class", r"_rq_(\d)xx$"),
    _rule("envoy.worker_id", rf"^(?:listener\.{_LISTENER}|server|listener_manager)\.worker_((\d+)\.)"),
    _rule("envoy.tcp_prefix", rf"^tcp\.(({_TOKEN})\.)"),
    _rule("envoy.cluster_name", rf"^cluster\.(({_TOKEN})\.)"),
    _rule("envoy.http_conn_manager_prefix", rf"^listener\..*?\.http\.(({_TOKEN})\.)"),
    _rule("envoy.http_conn_manager_prefix", rf"^http\.(({_TOKEN})\.)"),
    _rule("envoy.listener_address", rf"^listener\.(({_LISTENER})\.)"),
)
"""Envoy's default tags for the statistics that exist here, in Envoy's order. A new kind of statistic brings its row."""

_POSIX_CLASSES = {"alnum": "0-9A-Za-z", "alpha": "A-Za-z", "blank": r" \t", "digit": "0-9", "lower": "a-z",
                  "space": r"\s", "upper": "A-Z", "word": r"\w", "xdigit": "0-9A-Fa-f"}


_FIRST_TOKEN = re.compile(r"\^\w+(?:\\\.|\(\?=\\\.\)|\$$)", re.ASCII)


class TagError(ValueError):
    """A tag specifier that cannot be used; the text names tag and reason."""


def translate(pattern: str) -> str:
    """A tag regex (ECMAScript, as std::regex reads it) in Python's notation: POSIX classes are spelled out."""
    return re.sub(r"\[:(\w+):\]", lambda m: _POSIX_CLASSES.get(m[1], m[0]), pattern)


def rules_of(config: StatsConfig) -> tuple[Rule, ...]:
    """The rules of a configuration in the order in which Envoy asks them. Raises TagError."""
    rules = list(DEFAULT_RULES) if config.use_all_default_tags else []
    for tag in config.tags:
        if tag.fixed_value:
            rules.append(Rule(tag.name, None, tag.fixed_value))
        elif tag.regex:
            try:
                rules.append(_rule(tag.name, translate(tag.regex)))
            except re.error as error:
                raise TagError(f"stats tag {tag.name!r}: regex {tag.regex!r}: {error}") from error
        else:
            known = [rule for rule in DEFAULT_RULES if rule.name == tag.name]
            if not known:
                raise TagError(f"stats tag {tag.name!r}: no regex is given and there is no default one; default tags: "
                               + ", ".join(sorted({rule.name for rule in DEFAULT_RULES})))
            if not config.use_all_default_tags:
                rules.extend(known)
    # Envoy finds rules that begin with a literal first token by that token, after it has asked all others.
    return tuple(sorted(rules, key=lambda rule: bool(rule.pattern and _FIRST_TOKEN.match(rule.pattern.pattern))))


def extract(name: str, rules: tuple[Rule, ...]) -> tuple[str, list[tuple[str, str]]]:
    """The name without its variable parts, and (tag, value) in the order of the rules.

    Every rule sees the whole name; the parts are cut out afterwards. Of rules with one tag name the first that
    matches counts.
    """
    tags: dict[str, str] = {}
    cuts: list[tuple[int, int]] = []
    for tag, pattern, value in rules:
        if tag in tags:
            continue
        if pattern is not None:
            match = pattern.search(name)
            if match is None or not pattern.groups or match[1] is None:
                continue
            value = match[min(2, pattern.groups)] or ""
            cuts.append(match.span(1))
        tags[tag] = value
    kept = []
    at = 0
    for start, end in sorted(cuts):
        kept.append(name[at:max(at, start)])
        at = max(at, end)
    kept.append(name[at:])
    return "".join(kept), list(tags.items())
