"""The results that are kept with the code: a rerun of their first scenes has to find the same sources."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from risfast.evaluate.methods import Methods
from risfast.evaluate.scenarios import FROZEN_SCENES
from risfast.evaluate.suite import SuiteConfig, run_suite
from risfast.report.outcome import FROZEN, SUITE_JSON, finish

FROZEN_JSON = "frozen.json"
RESULTS = Path(__file__).parents[2] / "results"
# A hundredth of the tolerance of a hit: what another processor's rounding may do to a flat likelihood.
CLOSE = np.array([0.05, 0.05, 0.01])


@pytest.fixture(scope="module")
def described() -> dict:
    path = RESULTS / SUITE_JSON
    if not path.is_file():
        pytest.skip("a source tree without its results")
    return json.loads(path.read_text())


def estimates(path: Path) -> dict[tuple[str, int, int], np.ndarray]:
    """Sources of each (method, snapshots, scene): degrees, degrees, metres."""
    found = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = (row["method"], int(row["snapshots"]), int(row["scene"]))
            found[key].append([float(row[name]) for name in ("azimuth_deg", "elevation_deg", "range_m")])
    return {key: np.array(rows) for key, rows in found.items()}


def test_the_frozen_slice_is_of_the_shipped_checkpoint_with_its_options() -> None:
    # The tables beside it say in suite.json which version made them; the slice is of this one.
    frozen = json.loads((RESULTS / FROZEN_JSON).read_text())
    methods = Methods(SuiteConfig().model)
    for name in ("localizer", "localizer_raw", "greedy_ml"):
        assert frozen["methods"][name] == methods.identity(name), (
            f"{FROZEN} was made with another {name}; run `risfast evaluate --suite frozen --export results` and write "
            f"the identities of its methods into {FROZEN_JSON}"
        )


def test_the_results_say_what_made_them(described: dict) -> None:
    config, command = described["config"], described["command"]
    assert command.replace("risfast-train", "risfast").startswith(
        f"risfast evaluate --suite {config['suite']} --scenes {config['scenes']}"
    )
    assert f"--seed {config['seed']}" in command
    assert set(described["environment"]) >= {"risfast", "torch", "numpy", "python", "processor"}


def test_a_rerun_of_the_first_scenes_finds_the_same_sources(described: dict, tmp_path: Path) -> None:
    config = SuiteConfig(
        suite="frozen",
        scenes=FROZEN_SCENES,
        snapshots=tuple(described["config"]["snapshots"]),
        seed=described["config"]["seed"],
    )
    outcome = finish(config, run_suite(config, tmp_path), resamples=1)
    kept, again = estimates(RESULTS / FROZEN), estimates(outcome.tables / FROZEN)
    assert kept.keys() == again.keys()
    assert {key[:2] for key in kept} == {
        (m, length) for m in ("localizer", "localizer_raw", "greedy_ml") for length in config.snapshots
    }
    for key, rows in kept.items():
        assert rows.shape == again[key].shape, key
        order, other = (np.lexsort(r.T[::-1]) for r in (rows, again[key]))
        assert (np.abs(rows[order] - again[key][other]) <= CLOSE).all(), key
