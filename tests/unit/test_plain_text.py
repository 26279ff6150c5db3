"""hosts/plain_text.py: no control character of other people's text reaches a terminal."""

from __future__ import annotations

import pytest

from kernelbridge.plain_text import last_lines, printable, printable_lines


def test_what_a_terminal_would_obey_is_replaced_and_the_rest_stays() -> None:
    assert printable("a\x1b[31mé\n") == "a?[31mé?"
    assert printable("a\tb", instead=" ") == "a b"
    assert printable("a\x00b", instead="") == "ab"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one\ttwo\nthree", "one\ttwo\nthree"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07a", "a"),
        ("\x1b]52;c;aGVsbG8=\x1b\\a", "a"),
        ("\x1b[2J\x1b[?1049ha", "a"),
        ("\x1bPq#0;2\x1b\\a", "a"),
        ("\x1bca", "a"),
        ("\x9b31ma", "?31ma"),
        ("a\x1b", "a?"),
        ("10%\r20%\r\ndone", "10%\n20%\ndone"),
        ("a\x08b\x07\x00\u202e", "a?b???"),
        ("\x1b]52;no end", ""),
    ],
)
def test_lines_of_a_program_are_shown_without_its_orders_to_a_terminal(text: str, shown: str) -> None:
    assert printable_lines(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("one", "one"),
        ("one\ntwo\nthree\n", "two\nthree"),
        ("one\n\nthree", "\nthree"),
        ("1%\r2%\r3%\nx\x0by\u2028z\x85\n", "1%\r2%\r3%\nx\x0by\u2028z\x85"),
    ],
)
def test_the_last_lines_are_what_a_program_wrote(text: str, shown: str) -> None:
    assert last_lines(text, 2) == shown
