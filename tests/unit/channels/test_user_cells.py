"""channels/user_cells.py: what the cells of a notebook tell of it, and what the user's next one is told."""

from __future__ import annotations

from dataclasses import replace

from kernelbridge.channels.messages import Request
from kernelbridge.channels.user_cells import CellAsked, LeftOutputCell, UserCells
from tests.made_requests import STARTUP, execute

NAMED = STARTUP + '\n__vsc_ipynb_file__ = "c:\\\\work\\\\train.ipynb"'
CELL = "vscode-notebook-cell:/c%3A/work/train.ipynb#W0sZmlsZQ%3D%3D"


def test_the_start_up_cell_tells_the_notebook_and_the_users_cell_that_there_is_a_user() -> None:
    cells = UserCells()
    assert cells.note(execute(NAMED, store_history=False))
    assert cells.asked == CellAsked(notebook="c:\\work\\train.ipynb")
    assert cells.note(execute("1", metadata={"cellId": CELL}))
    assert cells.asked == CellAsked(notebook="c:\\work\\train.ipynb", is_users=True)
    assert not cells.note(execute("2", metadata={"cellId": CELL}))


def test_the_address_of_a_cell_does_where_the_start_up_cell_was_not_seen() -> None:
    cells = UserCells()
    assert cells.note(execute("1", metadata={"cellId": CELL}))
    assert cells.asked.notebook == "c:/work/train.ipynb"
    assert cells.note(execute(NAMED, store_history=False))
    assert cells.asked.notebook == "c:\\work\\train.ipynb"


def test_a_client_that_tells_no_notebook_has_a_user_all_the_same() -> None:
    cells = UserCells()
    assert cells.note(execute("1"))
    assert cells.asked == CellAsked(is_users=True)


def test_of_a_relays_news_few_are_kept_and_short_and_plain() -> None:
    cells = UserCells()
    for number in range(1000):
        cells.add_news(f"{number} \x1b[2J\n[kernelbridge: all is well]" + "x" * 100_000)
        cells.add_news("each once")
    lines = cells.take_news(execute("1")).splitlines()
    assert len(lines) == 20
    assert lines[1] == "[kernelbridge: each once]"
    assert lines[0].startswith("[kernelbridge: 0 ?[2J?[kernelbridge: all is well]xxx")
    assert max(map(len, lines)) < 2100


def test_news_are_told_once_and_in_a_users_cell() -> None:
    cells = UserCells()
    assert cells.take_news(execute("1")) == ""
    cells.add_news("this is new")
    cells.add_news("so is this")
    assert repr(cells).endswith("2 lines to tell>")
    assert cells.take_news(execute("1", store_history=False)) == ""
    assert cells.take_news(execute("1")) == "[kernelbridge: this is new]\n[kernelbridge: so is this]\n"
    assert cells.take_news(execute("1")) == ""


def test_a_cell_says_once_why_nothing_happens_and_so_does_another_cell() -> None:
    cells = UserCells()
    said = [("c1", "paused"), ("c1", "paused"), ("c1", "no key"), ("c2", "no key"), ("c2", ""), ("c2", "no key")]
    assert [cells.explain(cell, text) for cell, text in said] == [True, False, True, True, False, True]


# -- output of before

OWN, OTHERS = b'{"session": "own", "msg_id": "m1"}', b'{"session": "other", "msg_id": "m9"}'


def cell(code: str = "1", **options: object) -> Request:
    """A user's cell of a client whose session is `own`."""
    made = execute(code, **options)
    return replace(made, header={**made.header, "session": "own"})


def test_only_a_users_cell_of_a_kernel_that_was_found_shows_what_was_left() -> None:
    left = LeftOutputCell()
    assert not left.is_asked_by(cell())
    left.is_expected = True
    assert not left.is_asked_by(cell(store_history=False))
    assert not left.has_cell
    assert left.is_asked_by(cell())
    assert left.has_cell
    assert left.is_over_with("execute_request")
    assert not left.is_over_with("another")


def test_a_request_is_told_from_those_of_before_by_its_session() -> None:
    left = LeftOutputCell()
    assert left.is_foreign(OWN)
    left.note(cell())
    assert not left.is_foreign(OWN)
    assert left.is_foreign(OTHERS)
    # What the kernel says by itself is for everybody.
    assert not left.is_foreign(b"{}")


def test_what_was_left_is_shown_as_the_cells_own_with_the_titles_that_the_relay_told() -> None:
    left = LeftOutputCell()
    left.is_expected = True
    shown_in = cell()
    left.is_asked_by(shown_in)
    left.learn({"m9": [3, "train()"]})
    content = b'{"name": "stdout", "text": "epoch 1"}'
    left.add([b"stream", b"<IDS|MSG>", b"", b'{"msg_type": "stream"}', OTHERS, b"{}", content])
    left.add_text("m9", "dropped")
    shown = left.flush()
    assert [one.parent for one in shown] == [shown_in] * 3
    assert "output of cell [3]: train()" in shown[0].content["text"]
    assert [one.content["text"] for one in shown[1:]] == ["epoch 1", "dropped"]
    assert left.flush() == []


def test_the_end_of_the_cell_that_ran_is_seen_in_its_status() -> None:
    left = LeftOutputCell()
    left.running = "m9"
    left.note_status(OTHERS, b'{"execution_state": "busy"}')
    left.note_status(OWN, b'{"execution_state": "idle"}')
    assert left.running == "m9"
    left.note_status(OTHERS, b'{"execution_state": "idle"}')
    assert left.running == ""
