import pytest

from dmlfast.text import columns, counted, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Gr\u00fcn, \u72ac 1.png", "Gr\u00fcn, \u72ac 1.png"),
        ("a\nb\r\t\x1b[31m", r"a\nb\r\t\x1b[31m"),
        ("\u2028\u202e\udc80", r"\u2028\u202e\udc80"),  # a line's end, right to left, no UTF-8
    ],
)
def test_what_does_not_print_is_seen(text, shown):
    assert visible(text) == shown


def test_what_is_shown_can_be_said():
    assert visible("ab\u72ac", str.isascii) == r"ab\u72ac"


def test_cells_are_below_each_other():
    assert list(columns([("a", "bcd", ""), ("ef", "g", "h")])) == ["a   bcd", "ef  g    h"]


def test_one_is_singular():
    assert [counted(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]
    assert [counted(n, "query", "queries") for n in (1, 2)] == ["1 query", "2 queries"]
