"""The history of times: rows are of commits, so a tree with changes is refused."""

from __future__ import annotations

import subprocess

import pytest

from bench import history


def test_a_tree_with_changes_is_not_measured(tmp_path, monkeypatch, capsys):
    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "-m", "a")
    (tmp_path / "beside.txt").write_text("not under version control")
    assert history.is_clean(tmp_path)
    (tmp_path / "a.py").write_text("2\n")
    assert not history.is_clean(tmp_path)
    monkeypatch.setattr(history, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        history.main([])
    assert "commit them, or name revisions" in capsys.readouterr().err
