"""The command line of `python -m bench.capture`."""

from __future__ import annotations

import pytest

from bench import capture


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--nope"], 2)])
def test_nothing_is_measured_for_what_is_no_option(arguments: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as ended:
        capture.main(arguments)
    assert ended.value.code == status
