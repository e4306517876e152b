"""The soak, a 250th of it, and its judge."""

from __future__ import annotations

import numpy as np

from bench.soak import MOST_GROWTH, Part, main, problems


def test_a_250th_of_the_soak_is_flat_and_drawn(tmp_path, capsys):
    main(["--share", "0.004", "--picture", str(tmp_path / "soak.png")])  # its status also judges times
    told = capsys.readouterr().out
    for name in ("localisations", "detections", "live, latency", "frames dropped"):
        assert name in told
    assert "memory grew" not in told
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_memory_that_grows_is_seen_and_caches_that_fill_are_not():
    flat = 1e9 + 0 * np.arange(400.0)
    filling = flat + np.minimum(np.arange(400.0), 80) * 1e7
    growing = flat + np.arange(400.0) * 1e6
    seconds = np.ones(400)
    assert Part("x", seconds, flat).growth == 0
    assert Part("x", seconds, filling).growth == 0
    assert Part("x", seconds, growing).growth > MOST_GROWTH


def test_problems_differ():
    made = problems(50)
    assert len({(setup.array, tuple(grid.range_m.tolist())) for setup, grid in made}) == 50
