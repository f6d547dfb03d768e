"""How runtime values are read; each of these was asked of Envoy."""

from __future__ import annotations

import pytest

from proxy.runtime.values import boolean


@pytest.mark.parametrize(("value", "said"), [
    (True, True), (False, False), (1, True), (0, False), (2.0, True), (-1, True), (0.5, None), (1 << 31, None),
    ("true", True), ("TRUE", True), ("True", True), ("tRue", None), (" true ", True), ("yes", True), ("y", True),
    ("on", True), ("false", False), ("FALSE", False), ("no", False), ("n", False), ("off", False), ("1", True),
    (" 1 ", True), ("0", False), ("0.0", False), ("0.5", None), ("1e0", True), ("0x0", False), ("+1", True),
    ("01", True), ("-2147483648", True), ("2147483647", None), ("5000000000", None), ("100%", None), ("null", None),
    ({"numerator": 100}, None), (None, None),
])
def test_booleans(value: object, said: bool | None) -> None:
    for default in (True, False):
        assert boolean(value, default) is (default if said is None else said)
