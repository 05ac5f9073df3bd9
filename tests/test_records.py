"""What records say in words."""

import pytest

from norm_fusion.records import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad shape\nand more"), "ValueError: bad shape"),
        (ValueError("  \n padded "), "ValueError: padded"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 999), "ValueError: " + "x" * 300),
        (ValueError("/data/\udcff"), "ValueError: /data/\\udcff"),
    ],
)
def test_the_first_line_of_an_error_is_what_is_kept(error: Exception, line: str) -> None:
    assert first_line(error) == line
