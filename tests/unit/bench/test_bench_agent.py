"""The agent's part of the benchmark: its option, its table."""

from __future__ import annotations

import pytest

from bench import __main__ as main
from bench import agent
from bench.agent import Row


def test_the_option_leads_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "main", lambda: 7)
    assert main.main(["--agent"]) == 7


def test_the_table_judges() -> None:
    rows = [Row("a", "1 s", "2 s", True), Row("b", "3 s", "2 s", False), Row("c", "4 s", "", None)]
    assert agent.table(rows).splitlines()[2:] == ["| a | 1 s | 2 s ok |", "| b | 3 s | 2 s MISSED |", "| c | 4 s |  |"]


def test_processor_time_of_what_happens() -> None:
    import os

    def burn() -> None:
        end = os.times().user + 0.05
        while os.times().user < end:
            pass

    used, elapsed = agent.seconds_of([os.getpid()], burn)
    assert 0 < used <= elapsed + 0.05
