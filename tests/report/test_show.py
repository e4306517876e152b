"""The page of ``risfast show``: what the file of results holds, whole, without a network, sound in a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from test_report import Page

from risfast import Region, SensorArray, Setup, Sources
from risfast.cli import main
from risfast.errors import FileFormatError
from risfast.geometry import cartesian_to_spherical
from risfast.io import read_results, write_results
from risfast.io.results import MOST_SCENES
from risfast.ops import mvdr_spectrum
from risfast.report.views import ray_power, region_rings, scene_details
from risfast.steering import steering_vectors

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAN = math.nan
ARRAY = SensorArray.rectangular(6, 5, 0.1, 0.2)
SETUP = Setup(ARRAY, Region((-1.0, 1.0), (-0.5, 0.5), (0.5, 10.0)))
FOUND = Sources.at(
    torch.tensor([[0.4, 0.1, 1.5], [-0.3, -0.2, 3.0], [0.0, 0.3, NAN]], dtype=torch.float64),
    torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64),
    torch.tensor([0.9, 0.8, NAN], dtype=torch.float64),
)
SPREAD = torch.diag_embed(torch.tensor([[1e-5, 1e-5, 0.01], [1e-5, 2e-5, 0.09], [1e-5, 1e-5, math.inf]]).double())


HEAD = "scene,azimuth_deg,elevation_deg,range_m,power_db"


def covariance() -> torch.Tensor:
    a = steering_vectors(ARRAY, *FOUND.position[:2].T)
    return (a.mT @ a.conj() + 0.01 * torch.eye(30))[None]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes; the second has no sources."""
    grid = SETUP.search_grid(4.0)
    power = mvdr_spectrum(covariance(), ARRAY, grid).power[0]
    details = scene_details(power, grid, covariance(), SETUP, FOUND, SPREAD)
    path = tmp_path_factory.mktemp("results") / "found.json"
    write_results(path, [FOUND, Sources.empty()], SETUP, [details])
    return path


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    assert main(["show", str(results)]) == 0
    return results.with_name("found.json.html").read_text()


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_sources_come_back_from_what_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"found{suffix}"
    silent = FOUND.replace(power=torch.tensor([2.0, 1.0, 0.0]).double(), at_edge=torch.tensor([False, True, False]))
    write_results(path, [FOUND, Sources.empty(), silent], SETUP)
    back = read_results(path)
    assert [len(scene) for scene in back.scenes] == [3, 0, 3]
    for found, expected in zip(back.scenes, [FOUND, Sources.empty(), silent], strict=True):
        for name in ("position", "power", "confidence", "prominence_db", "at_edge"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)
    assert back.setup == (None if suffix == ".csv" else SETUP)


def test_details_come_back_to_a_tenth_of_a_decibel(results: Path) -> None:
    (details,) = read_results(results).details
    torch.testing.assert_close(details.position_covariance, SPREAD)
    assert details.map_db.shape == (len(details.azimuth_deg), len(details.elevation_deg))
    i, j = divmod(int(details.map_db.argmax()), details.map_db.shape[1])
    where = torch.stack([details.azimuth_deg[i], details.elevation_deg[j]])
    assert float((where - FOUND.position[:2, :2].rad2deg()).norm(dim=1).min()) < 3.0
    expected = ray_power(covariance(), SETUP, 0.4, 0.1, details.range_m)
    expected = 10 * (expected / expected.max()).log10().clamp_min(-4)
    torch.testing.assert_close(details.profile_db[0], expected, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.xyz", "", "results are read from"),
        ("a.mat", "MATLAB", r"from \.json and \.csv; write them again"),
        ("a.json", "", "is empty"),
        ("a.json", "{}", "scenes must be a list"),
        ("a.json", "[1, 2]", "not results of risfast locate: an object is expected"),
        ("a.json", "[" * 5000, "damaged, not results"),
        ("a.json", '{"scenes": [[{"azimuth_deg": 1}]]}', "scenes, 0, source 0: elevation_deg is missing"),
        ("a.json", '{"scenes": [[7]]}', "scenes, 0, source 0: must be an object"),
        ("a.json", json.dumps({"scenes": [[]] * (MOST_SCENES + 1)}), f"may hold {MOST_SCENES} scenes"),
        ("a.csv", "x,y\n1,2\n", "azimuth_deg"),
        ("a.csv", f"{HEAD}\n0,1,2,3,{'x' * 140_000}\n", "'line 2' cannot be read"),
        ("a.csv", f"{HEAD}\n0,1,2,3,4\n0,1,2\n", "line 3: must have 5 values"),
        ("a.csv", f"{HEAD}\n10000000,1,2,3,4\n", f"line 2: a file may hold {MOST_SCENES} scenes"),
        *(("a.csv", f"{HEAD}\n{scene},1,2,3,4\n", "line 2: scene must be") for scene in ("-1", "1.5", "inf")),
        *(("a.csv", f"{HEAD}\n0,{azimuth},2,3,4\n", "line 2: azimuth_deg must be") for azimuth in ("nan", "", "1e9")),
        ("a.csv", f"{HEAD}\n0,1,2,-3,4\n", "line 2: range_m must be"),
    ],
)
def test_what_is_no_file_of_results_is_refused(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FileFormatError, match=told):
        read_results(tmp_path / name)


def set_source(name: str, value: object):
    return lambda document: document["scenes"][0][1].update({name: value})


def set_detail(name: str, change):
    def apply(document: dict) -> None:
        document["details"][0][name] = change(document["details"][0][name])

    return apply


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_source("elevation_deg", None), "scenes, 0, source 1: elevation_deg must be a number"),
        (set_source("azimuth_deg", 10**400), "scenes, 0, source 1: azimuth_deg must be a number"),
        (set_source("range_m", -1.0), "scenes, 0, source 1: range_m must be a number"),
        (set_source("range_m", True), "range_m must be a number"),
        (set_source("power_db", "loud"), "power_db must be a number"),
        (set_source("confidence", 2), "confidence must be a number from 0 to 1"),
        (set_source("at_edge", "perhaps"), "at_edge must be"),
        (set_detail("position_covariance", lambda rows: rows[:2]), "details, 0: position_covariance must be of 3"),
        (set_detail("position_covariance", lambda rows: [[1.0, 2.0]]), "position_covariance must hold 3 x 3"),
        (set_detail("profile_db", lambda rows: rows[:2]), "details, 0: profile_db must be of 3 sources"),
        (set_detail("range_m", lambda text: "1 2 3"), "profile_db must fit to its axis range_m"),
        (set_detail("map_db", lambda rows: rows[1:]), "map_db must fit to its axis azimuth_deg"),
        (set_detail("map_db", lambda rows: [*rows[1:], "0"]), "map_db must have rows of one length"),
        (set_detail("map_db", lambda rows: []), "map_db must hold numbers"),
        (set_detail("map_db", lambda rows: [""] * len(rows)), "map_db must have rows"),
        (set_detail("azimuth_deg", lambda text: text.replace("0", "nan")), "azimuth_deg must be a number"),
        (lambda document: document["details"][0].pop("elevation_deg"), "must come together"),
        (lambda document: document["details"][0].update(more=1), "more is no part of the details"),
        (lambda document: document["details"].extend([{}] * 2), "at most one for each of 2 scenes"),
        (lambda document: document["setup"].update(format=99), "setup: format 99"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(results: Path, tmp_path: Path, change, told: str) -> None:
    document = json.loads(results.read_text())
    change(document)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match=f"{re.escape(str(path))}: .*{told}"):
        read_results(path)


def test_power_over_range_of_several_bands_peaks_where_the_source_is() -> None:
    bands = Setup(ARRAY, SETUP.region, sampling="direct", wavelengths_m=(0.2, 0.27, 0.33))
    each = []
    for wavelength in bands.wavelengths_m:
        a = steering_vectors(SensorArray(ARRAY.positions_m, wavelength), *FOUND.position[:1].T)
        each.append(a.mT @ a.conj() + 0.01 * torch.eye(30))
    ranges = torch.linspace(0.5, 3.0, 26, dtype=torch.float64)
    power = ray_power(torch.stack(each)[None], bands, 0.4, 0.1, ranges)
    assert float(ranges[power.argmax()]) == pytest.approx(1.5)


def test_the_rings_of_a_region_lie_at_the_95_percent_distance() -> None:
    spread = torch.diag(torch.tensor([0.01, 0.02, 0.04]).double()) + 0.005
    rings = torch.from_numpy(region_rings(FOUND.position[0], spread, math.inf)).reshape(-1, 3)
    off = cartesian_to_spherical(rings) - FOUND.position[0]
    squared = torch.einsum("pi,ij,pj->p", off, torch.linalg.inv(spread), off)
    # 95 % of a chi-square of three degrees of freedom, as its distribution function gives it.
    half = squared / 2
    probability = torch.special.gammainc(torch.full_like(half, 1.5), half)
    torch.testing.assert_close(probability, torch.full_like(half, 0.95), atol=1e-4, rtol=0)
    far = region_rings(FOUND.position[0], spread, 1.6)
    assert np.linalg.norm(far, axis=-1).max() <= 1.6 + 1e-9


def test_the_page_holds_the_table_and_the_data_and_asks_nothing_of_the_network(page: str) -> None:
    parsed = Page(page)
    assert not parsed.open
    text = " ".join(parsed.text)
    assert "22.92 ± 0.18" in text
    assert "1.500 ± 0.100" in text
    assert "not determined" in text
    assert "No sources were found in this scene." in text
    assert not re.search(r"""(?:src|href)=["'](?!data:)|https?://|@import|url\(""", page)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    first, second = json.loads(data)["scenes"]
    assert [source["range"] for source in first["sources"]] == ["1.5 m", "3.0 m", "no range"]
    assert [source["rings_m"] is None for source in first["sources"]] == [False, False, True]
    assert second["sources"] == []


def test_a_page_is_replaced_only_when_asked_and_names_are_safe(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "a<b.csv"
    write_results(path, [FOUND])
    assert main(["show", str(path)]) == 0
    assert "<h1>a&lt;b.csv</h1>" in path.with_name("a<b.csv.html").read_text()
    assert main(["show", str(path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["show", str(path), "--overwrite", "--quiet"]) == 0
    assert main(["show", str(path), "--output", str(tmp_path / "a.png")]) == 2
    assert main(["show", str(tmp_path / "missing.json")]) == 2
    assert "there is no such file" in capsys.readouterr().err


PROBE = """<script>addEventListener("load", () => {
  const painted = {};
  for (const canvas of document.querySelectorAll("canvas")) {
    const values = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let sum = 0;
    for (let i = 3; i < values.length; i += 4) if (values[i]) sum++;
    painted[canvas.id] = canvas.closest("figure").hidden ? null : sum;
  }
  const before = document.getElementById("space-canvas").toDataURL();
  document.getElementById("space-canvas").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
  const turned = before !== document.getElementById("space-canvas").toDataURL();
  const cut = [...document.querySelectorAll("td, th, h1, h2, p, figcaption, .ends")].filter(one => {
    const box = one.getBoundingClientRect();
    return box.width > 0 && (box.right > innerWidth + 0.5 || one.scrollWidth > one.clientWidth + 1);
  }).length;
  const wide = document.documentElement.scrollWidth - innerWidth;
  document.getElementById("scene-choice").value = "1";
  document.getElementById("scene-choice").dispatchEvent(new Event("change"));
  const empty = document.getElementById("space").hidden && document.getElementById("map").hidden;
  const ground = getComputedStyle(document.body).backgroundColor;
  document.body.dataset.found = JSON.stringify({painted, turned, cut, wide, empty, ground});
});</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (800, True), (390, False)])
def test_in_a_browser_everything_is_drawn_fits_and_turns(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", PROBE), encoding="utf-8")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"),
        *(f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--window-size={width},900"),
        *("--virtual-time-budget=5000", "--dump-dom", path.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    told = re.search(r'data-found="([^"]*)"', done.stdout)
    assert told, done.stdout[-2000:]
    found = json.loads(told[1].replace("&quot;", '"'))
    assert all(count > 1000 for count in found["painted"].values()), found
    assert set(found["painted"]) == {"map-canvas", "space-canvas", "profiles-canvas"}
    assert (found["turned"], found["cut"], found["empty"]) == (True, 0, True)
    assert found["wide"] <= 0
    assert (sum(map(int, re.findall(r"\d+", found["ground"])[:3])) < 150) == dark
    assert "CONSOLE" not in done.stderr
