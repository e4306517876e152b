"""Setups as files: what is written is read as an equal setup, and every wrong file gets its own sentence."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from risfast.errors import FileFormatError
from risfast.geometry import Region, SensorArray
from risfast.io import read_setup, write_setup
from risfast.io.setup_file import read_setup_parts
from risfast.setup import Setup, Tolerance


def array_of(path: Path) -> SensorArray:
    return read_setup_parts(path).array


def write_toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "array.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_rectangular_array_is_centred_with_rows_fastest(tmp_path: Path) -> None:
    text = "[rectangular]\nn_h = 3\nn_v = 2\nspacing_m = 0.5\nwavelength_m = 0.25\n"
    array = array_of(write_toml(tmp_path, text))
    expected = [[0.5 * (h - 1), 0.5 * (v - 0.5), 0] for h in range(3) for v in range(2)]
    np.testing.assert_allclose(array.positions_m.numpy(), expected)
    assert array.wavelength_m == 0.25


def test_positions_are_read_in_order_from_the_toml_and_from_a_csv_file(tmp_path: Path) -> None:
    expected = [[0.0, 0.1, 0.0], [0.2, -0.1, 0.05], [1.0, 0.0, 0.0]]
    inline = array_of(write_toml(tmp_path, f"wavelength_m = 1\npositions_m = {expected}\n"))
    lines = ["# from the drawing", "x_m, y_m, z_m", "", *(",".join(map(str, row)) for row in expected)]
    (tmp_path / "elements.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    tabulated = array_of(write_toml(tmp_path, 'wavelength_m = 1.0\npositions_file = "elements.csv"\n'))
    for array in (inline, tabulated):
        np.testing.assert_array_equal(array.positions_m.numpy(), expected)
        assert array.wavelength_m == 1.0


RECTANGULAR = "[rectangular]\nn_h = 3\nn_v = 2\nspacing_m = 0.5\nwavelength_m = 0.25\n"
WRONG_ARRAYS = {
    "empty": ("", "the file is empty"),
    "comment only": ("# nothing\n", "exactly one of .* got none of them"),
    "not toml": ("n_h: 12\n", "not valid TOML"),
    "both": ("positions_m = [[0,0,0]]\n" + RECTANGULAR, "got rectangular and positions_m"),
    "no form": ("wavelength_m = 1\n", "got none of them"),
    "misspelt": (
        RECTANGULAR.replace("spacing_m", "spacing_mm"),
        r"'spacing_mm' in \[rectangular\]; did you mean spacing_m",
    ),
    "unit left out": ("wavelength = 1\npositions_m = [[0,0,0]]\n", "did you mean wavelength_m"),
    "degrees": ("azimuth_deg = [-60, 60, 361]\n" + RECTANGULAR, r"stands in \[region\] of a file with format = 1"),
    "wavelength outside": ("wavelength_m = 1\n" + RECTANGULAR, "stands outside"),
    "missing": ("[rectangular]\nn_h = 3\nn_v = 3\nspacing_m = 1\n", "the key wavelength_m is missing"),
    "missing beside positions": ("positions_m = [[0,0,0]]\n", "the key wavelength_m is missing"),
    "not a table": ("rectangular = 3\n", "must be a table"),
    "fraction of an element": (
        RECTANGULAR.replace("n_h = 3", "n_h = 3.0"),
        r"n_h in \[rectangular\] must be a whole number >= 1, got 3.0",
    ),
    "no element": (
        RECTANGULAR.replace("n_v = 2", "n_v = 0"),
        r"n_v in \[rectangular\] must be a whole number >= 1, got 0",
    ),
    "bool": (
        RECTANGULAR.replace("n_v = 2", "n_v = true"),
        r"n_v in \[rectangular\] must be a whole number >= 1, got True",
    ),
    "text": (
        RECTANGULAR.replace("0.5", '"0.5"'),
        r"spacing_m in \[rectangular\] must be a positive number of metres, got '0.5'",
    ),
    "negative": (
        RECTANGULAR.replace("0.25", "-1"),
        r"wavelength_m in \[rectangular\] must be a positive number of metres, got -1",
    ),
    "nan": (RECTANGULAR.replace("0.25", "nan"), "wavelength_m in .rectangular. must be a positive number"),
    "no positions": ("wavelength_m = 1\npositions_m = []\n", "at least one element"),
    "two coordinates": ("wavelength_m = 1\npositions_m = [[0,0,0],[1,2]]\n", r"positions_m\[1\] must be \[x, y, z\]"),
    "text position": ("wavelength_m = 1\npositions_m = [[0,0,'1']]\n", r"positions_m\[0\] must be"),
    "infinite position": ("wavelength_m = 1\npositions_m = [[0,0,inf]]\n", r"positions_m\[0\] must be"),
    "no table": ("wavelength_m = 1\npositions_file = 'none.csv'\n", "none.csv: there is no such file"),
    "table name": ("wavelength_m = 1\npositions_file = 3\n", "must be the name of a CSV file"),
}


@pytest.mark.parametrize(("text", "words"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS.keys())
def test_each_wrong_array_file_gets_its_own_sentence(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=words):
        array_of(write_toml(tmp_path, text))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"x,y,z\n", "no positions in it"),
        (b"x,y,z\nx,y,z\n", "line 2 must hold"),
        (b"0,0,0\n1,2\n", "line 2 must hold x, y, z in metres, found '1,2'"),
        (b"0 0 0\n1 2\n", "line 2 must hold"),
        (b"nan,0,0\n", "line 1 must hold"),
        (b"0,0,0\n1,2,three\n", "line 2 must hold"),
        (b"\xff\xfe\x00", "cannot be read as a table"),
        (b"", "the file is empty"),
    ],
)
def test_each_wrong_table_of_positions_gets_its_own_sentence(table: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(table)
    with pytest.raises(FileFormatError, match=words):
        array_of(write_toml(tmp_path, "wavelength_m = 1\npositions_file = 'p.csv'\n"))


def test_toml_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "array.toml").write_bytes(b"\xff\xfe[\x00")
    with pytest.raises(FileFormatError, match="not valid TOML"):
        array_of(tmp_path / "array.toml")


def document(array: str = "rectangular = { n_h = 3, n_v = 2, spacing_m = 0.5 }", top: str = "", rest: str = "") -> str:
    return f"format = 1\n{top}\n[array]\nwavelength_m = 0.25\n{array}\n{rest}\n"


SETUPS = {
    "the reference surface": Setup(SensorArray.rectangular(), Region((-1.0, 1.0), (-0.5, 0.5), (0.5, 10.0))),
    "derived": Setup(SensorArray.rectangular(5, 3, 0.1, 0.21)),
    "a ring": Setup(SensorArray.circular(7, 0.31, 0.0107), wavefront="planar", sampling="direct", speed_m_s=343.0),
    "a volume": Setup(SensorArray(np.random.default_rng(0).normal(size=(5, 3)), 0.1), wavefront="fresnel"),
    "another order": Setup(SensorArray(SensorArray.rectangular(3, 2).positions_m.flip(0), 0.3)),
    "fixed": Setup(
        SensorArray.linear(4, 0.1, 0.2), Region((-1 / 3, 2 / 7), (0.1, 0.1), (0.3, math.inf)), tolerance=Tolerance(0.0)
    ),
}


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())
def test_a_setup_survives_its_file(setup: Setup, tmp_path: Path) -> None:
    write_setup(tmp_path / "setup.toml", setup)
    assert read_setup(tmp_path / "setup.toml") == setup
    assert hash(read_setup(tmp_path / "setup.toml")) == hash(setup)
    assert [item.name for item in tmp_path.iterdir()] == ["setup.toml"]


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(low=st.floats(-math.pi, math.pi), width=st.floats(0, math.pi), up=st.floats(-math.pi / 2, math.pi / 2))
def test_any_radians_are_written_as_degrees_that_give_the_same(
    tmp_path_factory: pytest.TempPathFactory, low: float, width: float, up: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    volume = SETUPS["a volume"].array
    region = Region((low, low + width), (up, up), (0.1, 7.3))
    setup = Setup(volume, region, tolerance=Tolerance(width, abs(up)))
    write_setup(path, setup)
    assert read_setup(path) == setup


def test_angles_that_were_given_in_degrees_are_written_as_they_were(tmp_path: Path) -> None:
    region = Region((math.radians(-60.1), math.radians(33.0)), (math.radians(-0.7), math.radians(1e-3)), (0.5, 10))
    write_setup(tmp_path / "setup.toml", Setup(SensorArray.rectangular(), region))
    text = (tmp_path / "setup.toml").read_text()
    assert "azimuth_deg = [-60.1, 33.0]" in text
    assert "elevation_deg = [-0.7, 0.001]" in text


def test_what_a_file_leaves_out_is_derived(tmp_path: Path) -> None:
    array = SensorArray.rectangular(3, 2, 0.5, 0.25)
    assert read_setup(write_toml(tmp_path, document())) == Setup(array)
    partly = read_setup(write_toml(tmp_path, document(rest="[region]\nrange_m = [1, inf]\n[tolerance]\nrange_m = 2\n")))
    assert partly == Setup(
        array,
        Region(Region.of(array).azimuth_rad, Region.of(array).elevation_rad, (1.0, math.inf)),
        tolerance=Tolerance(range_m=2.0),
    )
    old = "[rectangular]\nn_h = 3\nn_v = 2\nspacing_m = 0.5\nwavelength_m = 0.25\n"
    assert read_setup(write_toml(tmp_path, old)) == Setup(array)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linear = { n = 4, spacing_m = 0.1 }", SensorArray.linear(4, 0.1, 0.25)),
        ("circular = { n = 5, radius_m = 0.2 }", SensorArray.circular(5, 0.2, 0.25)),
        ('circular = { n = 5, radius_m = 0.2, plane = "xy" }', SensorArray.circular(5, 0.2, 0.25, "xy")),
        ("positions_m = [[0, 0, 0], [0.1, 0.2, 0.3]]", SensorArray([[0, 0, 0], [0.1, 0.2, 0.3]], 0.25)),
        ("positions_file = 'p.csv'", SensorArray([[0, 0, 0], [1, 2, 0]], 0.25)),
    ],
)
def test_every_form_of_an_array(text: str, expected: SensorArray, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("x,y,z\n0,0,0\n1,2,0\n")
    assert array_of(write_toml(tmp_path, document(text))) == expected


def test_a_frequency_and_a_speed_take_the_place_of_the_wavelength(tmp_path: Path) -> None:
    text = document("linear = { n = 4, spacing_m = 0.1 }", "speed_m_s = 343\nsampling = 'direct'")
    setup = read_setup(write_toml(tmp_path, text.replace("wavelength_m = 0.25", "frequency_hz = 1000")))
    assert setup == Setup(SensorArray.linear(4, 0.1, 343 / 1000), sampling="direct", speed_m_s=343.0)


BANDS = Setup(SensorArray.linear(3, 0.1, 0.2), sampling="direct", wavelengths_m=(0.3, 0.2), gains=(1, 1j, 0.1 - 2 / 3j))


def test_bands_and_gains_are_written_and_read_to_the_last_bit(tmp_path: Path) -> None:
    write_setup(tmp_path / "setup.toml", BANDS)
    assert read_setup(tmp_path / "setup.toml") == BANDS
    parts = read_setup_parts(tmp_path / "setup.toml")
    assert parts.wavelengths_m == (0.3, 0.2)
    assert parts.gains == BANDS.gains
    assert parts.array.wavelength_m == 0.2


def test_bands_are_given_by_frequencies_too(tmp_path: Path) -> None:
    text = document("linear = { n = 3, spacing_m = 0.1 }", "speed_m_s = 343\nsampling = 'direct'")
    several = text.replace("wavelength_m = 0.25", "frequencies_hz = [1000, 2000.0]")
    assert read_setup(write_toml(tmp_path, several)).wavelengths_m == (0.343, 0.1715)
    one = text.replace("wavelength_m = 0.25", "wavelengths_m = [0.25]")
    assert read_setup(write_toml(tmp_path, one)) == read_setup(write_toml(tmp_path, text))


LINEAR = "linear = { n = 2, spacing_m = 1 }"
WRONG_SETUPS = {
    "bands of a surface": (
        document(LINEAR).replace("wavelength_m = 0.25", "wavelengths_m = [1, 2]"),
        "several wavelengths_m need an array that is sampled directly: sampling='direct'$",
    ),
    "bands and one": (document(f"wavelengths_m = [1]\n{LINEAR}"), "wavelength_m and wavelengths_m are both there"),
    "no bands": (
        document(LINEAR).replace("wavelength_m = 0.25", "wavelengths_m = []"),
        "wavelengths_m in .array. must be a list of positive numbers",
    ),
    "bands without speed": (
        document(LINEAR).replace("wavelength_m = 0.25", "frequencies_hz = [1, 2]"),
        "frequencies_hz in .array. needs speed_m_s",
    ),
    "bands within": (document("linear = { n = 2, spacing_m = 1, wavelengths_m = [1] }"), "it stands in .array."),
    "gains of one": (document(LINEAR, top="gains = [[1, 0]]"), "gains must be 2 finite complex numbers"),
    "gains of zero": (document(LINEAR, top="gains = [[1, 0], [0, 0]]"), "gains must be 2 .* not zero"),
    "gains not pairs": (document(LINEAR, top="gains = [1, 2]"), "gains must be a list of .real, imaginary."),
    "other format": (document().replace("format = 1", "format = 2"), "format 2, and this version reads 1"),
    "no format": (document().replace("format = 1", ""), "the key format is missing; put format = 1"),
    "no array": ("format = 1\n", "the key array is missing"),
    "misspelt": (document(top="wave_front = 'planar'"), "unknown key 'wave_front'; did you mean wavefront"),
    "misspelt table": (document(rest="[regions]\n"), "unknown key 'regions'; did you mean region"),
    "misspelt range": (document(rest="[region]\nrange = [1, 2]\n"), r"'range' in \[region\]; did you mean range_m"),
    "radians": (document(rest="[region]\nazimuth_rad = [-1, 1]\n"), r"did you mean azimuth_deg"),
    "wavefront": (
        document(top="wavefront = 'flat'"),
        "wavefront must be one of spherical, fresnel, planar; got 'flat'",
    ),
    "sampling": (document(top="sampling = 'ris'"), "sampling must be one of surface, direct; got 'ris'"),
    "speed": (document(top="speed_m_s = -1"), "speed_m_s must be a positive number of metres per second, got -1"),
    "both": (
        document("frequency_hz = 1e9\nlinear = { n = 2, spacing_m = 1 }"),
        "wavelength_m and frequency_hz are both",
    ),
    "no speed": (
        document("linear = { n = 2, spacing_m = 1 }").replace("wavelength_m", "frequency_hz"),
        "frequency_hz in .array. needs speed_m_s",
    ),
    "wavelength within": (
        document("linear = { n = 2, spacing_m = 1, wavelength_m = 1 }"),
        r"'wavelength_m' in \[array.linear\]; it stands in \[array\]",
    ),
    "two forms": (
        document("linear = { n = 2, spacing_m = 1 }\npositions_m = [[0, 0, 0]]"),
        "got linear and positions_m",
    ),
    "no form": (document(""), r"exactly one of \[array.rectangular\].*got none of them"),
    "plane": (document("circular = { n = 2, radius_m = 1, plane = 'zx' }"), "plane in .* must be one of xz, xy, yz"),
    "inside out": (document(rest="[region]\nazimuth_deg = [60, -60]\n"), "azimuth_deg in .region. is inside out"),
    "beyond": (document(rest="[region]\nelevation_deg = [-91, 0]\n"), r"in degrees within \+-90, got \[-91, 0\]"),
    "nan": (document(rest="[region]\nazimuth_deg = [nan, 0]\n"), "azimuth_deg in .region. must be"),
    "one end": (document(rest="[region]\nazimuth_deg = 3\n"), "azimuth_deg in .region. must be"),
    "range zero": (document(rest="[region]\nrange_m = [0, 1]\n"), "must start at a finite range above 0"),
    "range far": (document(rest="[region]\nrange_m = [inf, inf]\n"), "must start at a finite range above 0"),
    "behind": (document(rest="[region]\nazimuth_deg = [170, 180]\n"), "region lies behind the array"),
    "not a table": (document(rest="").replace("[array]", "array = 3\n[region]"), "array must be a table"),
    "tolerance": (document(rest="[tolerance]\nazimuth_deg = -1\n"), "azimuth_deg in .tolerance. must be a number"),
    "tolerance range": (document(rest="[tolerance]\nrange_m = nan\n"), "range_m in .tolerance. must be a number"),
    "tilted": (
        document("positions_m = [[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]]", rest="[region]\nrange_m = [1, 2]\n"),
        "tilted in elevation.*give azimuth_rad, elevation_rad in .region.".replace("_rad", "_deg"),
    ),
}


@pytest.mark.parametrize(("text", "words"), WRONG_SETUPS.values(), ids=WRONG_SETUPS.keys())
def test_each_wrong_setup_gets_its_own_sentence(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=words) as caught:
        read_setup(write_toml(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_array_without_a_derivable_region_is_read_where_the_array_is_enough(tmp_path: Path) -> None:
    tilted = document("positions_m = [[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]]")
    assert array_of(write_toml(tmp_path, tilted)).n_elements == 4
    with pytest.raises(FileFormatError, match=r"give the region.*\[region\]"):
        read_setup(write_toml(tmp_path, tilted))


def test_a_setup_is_written_as_toml_only(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"a setup is written as \.toml"):
        write_setup(tmp_path / "setup.json", SETUPS["derived"])
    assert not list(tmp_path.iterdir())


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_a_damaged_setup_is_read_or_refused_with_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    write_setup(path, SETUPS["the reference surface"])
    lines = path.read_text().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    change = data.draw(st.sampled_from(["drop", "double", "value", "cut"]))
    key = lines[at].partition(" = ")[0]
    value = data.draw(
        st.sampled_from(["0", "-1", "nan", "inf", "'x'", "[]", "[1, 2, 3]", "{}", "true", "1e999", "[[1]]"])
    )
    new = {"drop": [], "double": [lines[at]] * 2, "value": [f"{key} = {value}"], "cut": [lines[at][:3]]}[change]
    path.write_text("\n".join([*lines[:at], *new, *lines[at + 1 :]]))
    try:
        setup = read_setup(path)
    except FileFormatError as error:
        assert path.name in str(error)  # noqa: PT017  (a result is fine too)
    else:
        assert setup.array.n_elements >= 1


def test_a_box_is_written_and_read_and_scaled(tmp_path):
    region = Region.box_m((-2.0, 2.5), (-1.0, 1.5), (0.5, 6.0))
    setup = Setup(SensorArray.rectangular(4, 4), region, sampling="direct")
    write_setup(tmp_path / "setup.toml", setup)
    assert read_setup(tmp_path / "setup.toml") == setup
    assert Setup.from_json(setup.to_json()) == setup
    assert setup.scaled(2.0).region == Region.box_m((-4.0, 5.0), (-2.0, 3.0), (1.0, 12.0))
    text = "format = 1\n[array]\nwavelength_m = 0.3\n[array.linear]\nn = 4\nspacing_m = 0.1\n[region]\n"
    (tmp_path / "short.toml").write_text(text + "x_m = [-2.0, 2.5]\ny_m = [-1.0, 1.5]\nz_m = [0.5, 6.0]\n")
    assert read_setup(tmp_path / "short.toml").region == region
    (tmp_path / "part.toml").write_text(text + "x_m = [-2.0, 2.5]\ny_m = [-1.0, 1.5]\n")
    with pytest.raises(FileFormatError, match="z_m is missing"):
        read_setup(tmp_path / "part.toml")
    (tmp_path / "flat.toml").write_text(text + "x_m = [-2.0, 2.5]\ny_m = [1.0, 1.0]\nz_m = [0.5, 6.0]\n")
    with pytest.raises(FileFormatError, match="y of a box"):
        read_setup(tmp_path / "flat.toml")
