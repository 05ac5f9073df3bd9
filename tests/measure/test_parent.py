"""A worker's end of its conversation: lines, answers, the breadcrumb, the beat."""

import io
import json
import os
from pathlib import Path

import pytest

from norm_fusion.measure import parent as parent_module
from norm_fusion.measure.parent import CRUMB, CRUMB_BYTES, Parent


def parent(answers: bytes = b"") -> tuple[Parent, io.StringIO]:
    out = io.StringIO()
    return Parent(out, io.BytesIO(answers)), out


def said(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_event_is_a_line_and_an_answer_is_too() -> None:
    p, out = parent(b'{"rows": [1, 2]}\n{}\n')
    p.send("progress", case="c", what="two\nlines")
    assert p.ask("output", profile="a") == {"rows": [1, 2]}
    assert p.ask("rows") == {}
    assert said(out) == [
        {"event": "progress", "case": "c", "what": "two\nlines"},
        {"event": "output", "profile": "a"},
        {"event": "rows"},
    ]


def test_a_fork_of_the_worker_says_nothing_and_ends(tmp_path: Path) -> None:
    """Two that tell of one case would both be believed."""
    with (tmp_path / "told").open("w") as out:
        p = Parent(out, io.BytesIO())
        child = os.fork()
        if child == 0:
            try:
                p.send("done")
            finally:
                os._exit(7)  # not pytest a second time
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert (tmp_path / "told").read_text() == ""


def test_a_parent_that_is_gone_is_an_error_of_its_own() -> None:
    with pytest.raises(EOFError, match="is gone"):
        parent()[0].ask("bracket")


def test_the_breadcrumb_says_whose_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crumb = tmp_path / "crumb"
    crumb.write_bytes(bytes(CRUMB_BYTES))
    monkeypatch.setenv(CRUMB, str(crumb))
    p, _ = parent()
    p.at("rmsnorm-1x8-float32", "a-rather-long-profile")
    p.at("rmsnorm-1x8-float32", "b")
    assert crumb.read_bytes().rstrip(b"\0") == b"rmsnorm-1x8-float32\nb"
    p.at("rmsnorm-1x8-float32", "m:" + "f" * 999)
    assert len(crumb.read_bytes()) == CRUMB_BYTES


def test_a_beat_is_sent_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(parent_module, "monotonic", lambda: now[0])
    p, out = parent()
    for now[0] in (0.5, 1.0, 1.1, 1.5, 2.0, 2.2, 9.0):
        p.at("c", "a")
    assert said(out) == [{"event": "beat"}] * 3
