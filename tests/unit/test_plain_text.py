"""hosts/plain_text.py: no control character of other people's text reaches a terminal."""

from __future__ import annotations

import pytest

from kernelbridge.plain_text import added, last_lines, printable, printable_lines


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


@pytest.mark.parametrize(
    ("before", "now", "more"),
    [
        ("", "", ""),
        ("", "one\n", "one\n"),
        ("one\n", "one\n", ""),
        ("one\n", "one\ntwo\n", "two\n"),
        ("one\n", "other\n", "other\n"),
        ("one\n", "", ""),
    ],
)
def test_what_a_log_has_gained_is_what_stands_behind_what_it_had(before: str, now: str, more: str) -> None:
    assert added(before, now) == more


ALL = "".join(f"line {number}\n" for number in range(1000))


@pytest.mark.parametrize("kept", [500, 2000])
@pytest.mark.parametrize("gained", [0, 1, 100, 200])
def test_it_is_known_where_only_the_last_part_of_a_log_is_kept(kept: int, gained: int) -> None:
    end = len(ALL) - gained
    assert added(ALL[end - kept : end], ALL[-kept:]) == ALL[end:]


def test_it_is_known_where_what_is_new_is_the_same_again() -> None:
    block = ALL[:300]
    assert added("old\n" + block, block + "between\n" + block) == "between\n" + block
    assert added("." * 5000, "." * 5000 + "x") == "x"
    assert added("." * 5000 + "x" * 300, "." * 4000 + "x" * 300 + "y") == "y"


def test_it_is_known_where_the_first_character_that_is_kept_was_cut_in_two() -> None:
    assert added("\ufffd" + ALL[100:2000], "\ufffd\ufffd" + ALL[200:2100]) == ALL[2000:2100]


def test_a_log_of_which_nothing_is_left_is_new_as_a_whole() -> None:
    assert added(ALL[:1000], ALL[5000:7000]) == ALL[5000:7000]
