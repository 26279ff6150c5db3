"""tests/foreign: its tables are well-formed, and what it reads from others' runs can fail. The suites run on demand."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from kernelbridge.config.schema import Environment
from tests.foreign import browser, environments, report
from tests.foreign.results import (
    NO_KERNEL,
    Result,
    Row,
    UnreadableResults,
    after_second_try,
    beside_local,
    failed,
    load,
    read_lines,
    read_playwright,
    same_cells,
)
from tests.foreign.suites import SUITES, Suite

HERE = Path(environments.__file__).parent


def line(test: str, outcome: str, *, kernels: int = 1, reason: str = "") -> str:
    return json.dumps({"test": test, "outcome": outcome, "kernels": kernels, "reason": reason})


def row(*results: Result, misses: dict[str, str] | None = None) -> Row:
    return Row(suite="one", version="1", results=results, misses=misses or {}, seconds=60, date="2026-01-01")


# -- the table of suites


def test_each_suite_has_a_name_and_a_short_folder_of_its_own() -> None:
    assert len({suite.name for suite in SUITES}) == len(SUITES)
    assert len({suite.folder for suite in SUITES}) == len(SUITES)
    assert max(len(suite.folder) for suite in SUITES) <= 12


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_suite_is_pinned_and_says_where_its_tests_are(suite: Suite) -> None:
    assert re.fullmatch(r"\d+(\.\d+)+", suite.version)
    assert bool(suite.sdist) != bool(suite.repository)
    assert suite.tests
    assert suite.kernels[0] == "python3"
    assert set(suite.environment) <= set(Environment.model_fields)
    assert re.fullmatch(r"KERNELBRIDGE_FOREIGN_[A-Z_]+", suite.variable)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_what_is_left_out_or_fails_has_a_reason(suite: Suite) -> None:
    for reason in (*suite.left_out.values(), *suite.misses.values()):
        assert len(reason) > 0
        assert "://" not in reason
    assert not set(suite.left_out) & set(suite.misses)


# -- pytest's results


def test_a_test_counts_where_it_has_started_a_kernel_of_ours() -> None:
    text = "\n".join([line("a", "passed"), line("b", "passed", kernels=0), line("c", "failed", kernels=0, reason="x")])
    found = read_lines(text, counts_kernels=True)
    assert [(one.test, one.outcome) for one in found] == [("a", "passed"), ("b", "left out"), ("c", "failed")]
    assert (found[1].reason, found[2].reason) == (NO_KERNEL, "x")
    assert {one.outcome for one in read_lines(line("b", "passed", kernels=0), counts_kernels=False)} == {"passed"}
    (kept,) = read_lines(line("cli::b", "passed", kernels=0), counts_kernels=True, uncounted=["cli::*"])
    assert kept.outcome == "passed"


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "3", '{"test": "a"}', '{"test": "a", "outcome": "well"}', line("a", "passed") + "\n{"]
)
def test_what_is_no_result_is_an_error_and_no_success(text: str) -> None:
    with pytest.raises(UnreadableResults):
        read_lines(text, counts_kernels=True)


def test_what_fails_twice_with_ours_and_not_with_a_local_kernel_is_ours() -> None:
    first = [Result(test=name, outcome="failed", reason="r") for name in "abc"]
    again = [Result(test="a", outcome="passed"), Result(test="b", outcome="failed"), Result(test="c", outcome="failed")]
    tried = after_second_try(first, again)
    assert (failed(tried), tried[0].is_second_try) == (["b", "c"], True)
    local = [Result(test="b", outcome="failed"), Result(test="c", outcome="passed")]
    assert [one.outcome for one in beside_local(tried, local)] == ["passed", "alike", "failed"]


# -- Playwright's


def spec(title: str, status: str, *errors: str) -> dict[str, object]:
    results = [{"errors": [{"message": error} for error in errors]}]
    return {"title": title, "tests": [{"status": status, "results": results, "annotations": [{"type": "skip"}]}]}


def test_playwrights_tests_are_found_in_all_depths() -> None:
    inner = {
        "title": "Group",
        "specs": [spec("b", "unexpected", "\x1b[31mError: no\x1b[0m\nmore"), spec("c", "skipped")],
    }
    text = json.dumps({"suites": [{"file": "x/a.test.ts", "specs": [spec("a", "expected")], "suites": [inner]}]})
    assert read_playwright(text, left_out={}) == [
        Result(test="a.test.ts: a", outcome="passed"),
        Result(test="a.test.ts > Group: b", outcome="failed", reason="Error: no"),
        Result(test="a.test.ts > Group: c", outcome="skipped", reason="skip"),
    ]
    assert read_playwright(text, left_out={"*: b": "why"})[1] == Result(
        test="a.test.ts > Group: b", outcome="left out", reason="why"
    )


@pytest.mark.parametrize("text", ["", "{}", '{"suites": []}', '{"suites": [{"file": "a", "specs": [{"title": "t"}]}]}'])
def test_what_playwright_does_not_write_is_an_error(text: str) -> None:
    with pytest.raises(UnreadableResults):
        read_playwright(text, left_out={})


def test_cells_must_show_the_same() -> None:
    found = same_cells("w.ipynb", ["div", "", "a\nb"], ["div", "", "a\nc"])
    assert [(one.test, one.outcome) for one in found] == [("w.ipynb: cell 0", "passed"), ("w.ipynb: cell 2", "failed")]
    assert found[1].reason == "shows 'b' where a local kernel shows 'c'"
    for ours, local in ((["a"], ["a", "b"]), ([""], [""]), ([], [])):
        with pytest.raises(UnreadableResults):
            same_cells("w.ipynb", ours, local)


# -- the report


def test_a_failure_without_an_explanation_is_seen() -> None:
    missed = Result(test="t::known", outcome="failed", reason="boom")
    known = row(missed, Result(test="t::good", outcome="passed"), misses={"*::known": "because", "*::gone": "was so"})
    assert (known.unexplained, known.mended, known.share) == ([], ["*::gone"], 50.0)
    other = row(missed)
    assert other.unexplained == [missed]
    assert "NOT EXPLAINED: boom" in report.printed([other], [])
    assert "because" in report.printed([known], [])


def test_the_page_has_each_suite_its_misses_and_what_was_left_out() -> None:
    results = [Result(test=f"{n}", outcome="passed", is_second_try=n == 0) for n in range(1999)]
    results += [Result(test="x", outcome="failed"), Result(test="y", outcome="left out", reason="no `kernel` <here>")]
    text = report.page([row(*results, misses={"x": "for a reason"})], [("two", "nowhere")], release="1.2")
    assert "| one | 1 | 2026-01-01 | 1999 | 1 | 0 | 1 | 99.9 |" in text
    assert "* one, 1: for a reason" in text
    assert "* one, 1 left out: no 'kernel' (here)" in text
    assert "* two: nowhere" in text
    assert max(len(one) for one in text.splitlines()) <= report.WIDTH


def test_a_suite_of_which_nothing_applies_has_no_share() -> None:
    assert report.cells(row(Result(test="a", outcome="left out", reason="r")))[-1] == "-"


def test_a_row_is_kept_for_the_next_page(tmp_path: Path) -> None:
    kept = row(Result(test="a", outcome="failed", reason="r"), misses={"a": "why"})
    kept.save(tmp_path / "row.json")
    assert load(tmp_path / "row.json", suite="one", misses={"a": "why"}) == kept


# -- what it runs with


def test_galata_and_jupyterlab_are_of_one_release() -> None:
    (galata,) = (word for word in browser.GALATA if word.startswith("@jupyterlab/galata@"))
    labs = {word for suite in SUITES if suite.server == "lab" for word in suite.packages if "jupyterlab==" in word}
    major, minor, patch = galata.rpartition("@")[2].split(".")
    assert labs == {f"jupyterlab=={int(major) - 1}.{minor}.{patch}"}


def test_the_plugin_needs_nothing_of_ours_and_the_browser_needs_all_that_is_set() -> None:
    assert "from tests" not in (HERE / "plugin.py").read_text()
    wanted = set(re.findall(r"KERNELBRIDGE_FOREIGN_[A-Z]+", (HERE / "playwright.config.js").read_text()))
    given = (HERE / "browser.py").read_text()
    assert not {name for name in wanted if name not in given}
    assert fnmatchcase("tests/test_x.py::TestA::test_b[c]", "*::test_b*")
