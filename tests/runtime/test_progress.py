"""A bar on a terminal and in a notebook, lines in a pipe."""

import io
import sys

import pytest

from qpsnn_jax.runtime.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_whole_lines(capsys):
    pytest.importorskip("ipykernel")  # imported, but this is not a notebook
    with progress("training", total=10) as shown:
        shown.advance(3, "loss 1.0")
        shown.line("epoch 1/2")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "training: epoch 1/2\n"


def test_a_terminal_gets_a_bar_that_starts_where_the_work_does(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("training", total=10, done=4) as shown:
        shown.advance(6, "loss 0.5")
        shown.line("epoch 1/2")
    text = terminal.getvalue()
    assert "40%" in text
    assert "10/10" in text
    assert "loss 0.5" in text
    assert "epoch 1/2\n" in text
    assert capsys.readouterr().out == ""


def test_the_bar_is_closed_when_the_work_fails(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(FloatingPointError), progress("training", total=2):
        raise FloatingPointError


def test_what_another_process_shows_is_not_shown_again(capsys):
    with progress("training", total=10, shown=False) as silent:
        silent.advance(3, "loss 1.0")
        silent.line("epoch 1/2")
    assert capsys.readouterr() == ("", "")
