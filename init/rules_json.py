"""`--output json`: rules as data, for people and programs that look at what this one would do or did."""

import json
from collections.abc import Mapping
from typing import Any

from init.apply import Outcome
from init.iptables_text import specification
from init.routing import wanted
from init.rules import VERSIONS, Plan, Rule
from init.settings import Settings


def report(settings: Settings, plan: Plan | None, outcome: Outcome | None) -> str:
    """One JSON object and a newline; `outcome` is None in a dry run."""
    document: dict[str, Any] = {}
    if plan is not None:
        document["rules"] = [_rule(rule, plan) for rule in plan.rules]
        document["network"] = [
            item.text
            for item in wanted(
                ipv6=plan.ipv6, active=settings.routes_inbound, mark=settings.tproxy_mark, table=settings.tproxy_table
            )
        ]
    if outcome is not None:
        document |= {"backend": outcome.backend, "changed": outcome.changed, "done": outcome.steps}
        if outcome.removed:
            document["removed"] = outcome.removed
    return json.dumps(document, indent=2) + "\n"


def _rule(rule: Rule, plan: Plan) -> Mapping[str, Any]:
    families = [rule.version] if rule.version else [version for version in VERSIONS if version in plan.versions]
    data: dict[str, Any] = {"table": rule.table, "chain": rule.chain, "families": [f"ipv{v}" for v in families]}
    if rule.position is not None:
        data["insert"] = rule.position
    data["matches"] = [
        {"kind": match.kind, "value": match.value, **({"negated": True} if match.negated else {})}
        for match in rule.matches
    ]
    data["target"] = {"kind": rule.target.kind} | {
        name: value for name, value in (("value", rule.target.value), ("mark", rule.target.mark)) if value
    }
    data["iptables"] = specification(rule)
    return data
