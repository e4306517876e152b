"""Microphone arrays: acoular's own geometries, simulation, files and Capon map."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from risfast import DetectionOptions, SearchGrid, detect_sources
from risfast.errors import FileFormatError
from risfast.geometry import spherical_to_cartesian
from risfast.io import SPEED_OF_SOUND_M_S, narrowband_covariance, read_positions
from risfast.io.formats.hdf5 import Hdf5Container
from risfast.ops import mvdr_spectrum
from risfast.simulate import read

REASON = "acoular is not installed (pip install 'risfast[bench]'): it writes these files and computes the same map"
RATE, BLOCK, LENGTH, FREQUENCY = 51200.0, 128, 12800, 8000.0
SOURCES = ((0.1, 0.05, 0.5), (-0.15, -0.1, 0.6))  # azimuth, elevation in radians, range in metres
GRID = SearchGrid(
    torch.linspace(-0.3, 0.3, 25, dtype=torch.float64),
    torch.linspace(-0.2, 0.2, 17, dtype=torch.float64),
    [0.4, 0.5, 0.6, 0.75],
)


@pytest.fixture(scope="module")
def acoular():
    import importlib.util
    import warnings

    if importlib.util.find_spec("acoular") is None:
        pytest.skip(REASON)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside its dependencies
        import acoular
    acoular.config.global_caching = "none"
    return acoular


def geometry_file(acoular, name):
    return Path(acoular.__file__).parent / "xml" / f"{name}.xml"


@pytest.fixture(scope="module")
def simulated(acoular, tmp_path_factory):
    """Two noise sources in the near field of the 64-microphone Vogel spiral, written by acoular."""
    mics = acoular.MicGeom(file=str(geometry_file(acoular, "tub_vogel64")))
    xyz = spherical_to_cartesian(torch.tensor(SOURCES, dtype=torch.float64)).tolist()
    parts = [
        acoular.PointSource(
            signal=acoular.WNoiseGenerator(sample_freq=RATE, num_samples=LENGTH, seed=seed, rms=1.0),
            mics=mics,
            loc=tuple(place),
        )
        for seed, place in enumerate(xyz)
    ]
    source = acoular.SourceMixer(sources=parts)
    path = tmp_path_factory.mktemp("acoular") / "time.h5"
    acoular.WriteH5(source=source, file=str(path)).save()
    return path


def acoulars_map(acoular, csm, frequency, loading=1e-2):
    """BeamformerCapon on our grid: 1 / (a^H C^-1 a) of the loaded matrix, N times as small as ours."""
    n = csm.shape[-1]
    loaded = csm + loading * np.trace(csm).real / n * np.eye(n)
    grid = acoular.ImportGrid()
    grid.pos = np.ascontiguousarray(spherical_to_cartesian(GRID.points()).reshape(-1, 3).numpy().T)
    mics = acoular.MicGeom(file=str(geometry_file(acoular, "tub_vogel64")))
    steer = acoular.SteeringVector(
        grid=grid, mics=mics, steer_type="classic", env=acoular.Environment(c=SPEED_OF_SOUND_M_S)
    )
    spectra = acoular.PowerSpectraImport(csm=loaded[None].copy(), frequencies=frequency)
    former = acoular.BeamformerCapon(freq_data=spectra, steer=steer, cached=False)
    return n * np.asarray(former.synthetic(frequency, 0)).reshape(GRID.shape)


def test_from_acoulars_files_to_its_map_within_a_hundredth_of_a_decibel_and_to_the_sources(acoular, simulated):
    recording = read(
        simulated,
        positions_m=geometry_file(acoular, "tub_vogel64"),
        frequency_hz=FREQUENCY,
        block_size=BLOCK,
    )
    assert recording.frequency_hz == FREQUENCY
    R = recording.covariance
    expected = acoulars_map(acoular, R[0].numpy(), FREQUENCY)
    actual = mvdr_spectrum(R, recording.array, GRID, reduce="none")[0].numpy()
    np.testing.assert_allclose(10 * np.log10(actual), 10 * np.log10(expected), atol=0.01, rtol=0)
    found = detect_sources(R, recording.array, GRID, options=DetectionOptions(max_sources=len(SOURCES)))[0]
    assert len(found) == len(SOURCES)
    for source in SOURCES:
        closest = min(found.position.tolist(), key=lambda place: math.dist(place[:2], source[:2]))
        np.testing.assert_allclose(closest, source, atol=0.02, rtol=0)  # radians, and two centimetres of range


def test_the_cross_spectral_matrix_is_acoulars(acoular, simulated):
    """With the rectangular window, which both define alike; acoular's scale is one factor."""
    samples = acoular.TimeSamples(file=str(simulated))
    theirs = acoular.PowerSpectra(
        source=samples, block_size=BLOCK, overlap="50%", window="Rectangular", precision="complex128", cached=False
    )
    ours, frequency, segments = narrowband_covariance(
        Hdf5Container(simulated).rows("time_data"), RATE, FREQUENCY, block_size=BLOCK, window="boxcar"
    )
    index = int(np.abs(theirs.fftfreq() - FREQUENCY).argmin())
    assert (frequency, segments) == (theirs.fftfreq()[index], theirs.num_blocks)
    expected = np.asarray(theirs.csm[index])
    scale = np.trace(ours.numpy()).real / np.trace(expected).real
    np.testing.assert_allclose(ours / scale, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    samples._h5f.close()


def test_samples_in_time_need_a_frequency_and_positions(acoular, simulated):
    with pytest.raises(
        FileFormatError, match=r"12800 samples in time of 64 channels at 51200 Hz; choose the frequency"
    ):
        read(simulated, positions_m=geometry_file(acoular, "tub_vogel64"))
    with pytest.raises(FileFormatError, match="positions of the elements are missing"):
        read(simulated, frequency_hz=FREQUENCY)


@pytest.mark.parametrize("name", ["array_56", "minidsp_uma-16", "gfai_ring32", "acousticam_4c", "tub_vogel64"])
def test_acoulars_geometries(acoular, name):
    path = geometry_file(acoular, name)
    np.testing.assert_array_equal(read_positions(path), acoular.MicGeom(file=str(path)).pos_total.T)


def test_a_geometry_that_acoular_exports(acoular, tmp_path):
    values = np.random.default_rng(1).normal(size=(3, 9))
    acoular.MicGeom(pos_total=values).export_mpos(str(tmp_path / "out.xml"))
    np.testing.assert_array_equal(read_positions(tmp_path / "out.xml"), values.T)


def write_benchmark(path, csm, frequencies, positions, sign):
    """As the definitions of the AIAA benchmark lay it out; what acoular's reader of it must be able to read."""
    with h5py.File(path, "w") as file:
        data = file.create_group("CsmData")
        data.attrs["fftSign"] = sign
        data["csmReal"], data["csmImaginary"] = csm.real, sign * csm.imag
        data["binCenterFrequenciesHz"] = frequencies[None]
        attributes = file.create_group("MetaData").create_group("ArrayAttributes")
        attributes["microphonePositionsM"] = positions
        attributes.attrs["microphoneCount"] = len(positions)
        file.create_group("MeasurementData").attrs["speedOfSoundMPerS"] = 340.0


def benchmark(seed=0, n=6, n_frequencies=4):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3 * n, n_frequencies)) + 1j * rng.normal(size=(n, 3 * n, n_frequencies))
    csm = np.einsum("alf,blf->abf", X, X.conj())
    return csm, 500.0 * np.arange(1, n_frequencies + 1), rng.normal(size=(n, 3))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_benchmarks_matrix_is_the_one_that_acoular_reads(acoular, tmp_path, sign):
    csm, frequencies, positions = benchmark()
    path = tmp_path / "b7aCsmEss.h5"
    write_benchmark(path, csm, frequencies, positions, sign)
    theirs = acoular.aiaa.CsmAIAABenchmark(file=str(path))
    mics = acoular.aiaa.MicAIAABenchmark(file=str(path))
    recording = read(path, frequency_hz=1000.0)
    np.testing.assert_allclose(recording.covariance[0], np.asarray(theirs.csm)[1], rtol=1e-12)
    np.testing.assert_array_equal(recording.array.positions_m, mics.pos_total.T)
    assert recording.array.wavelength_m == 0.34
    theirs._h5f.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["CsmData"].attrs.__setitem__("fftSign", 3), "fftSign of CsmData must be -1 or 1"),
        (lambda file: file.__delitem__("CsmData/csmImaginary"), "there is no 'CsmData/csmImaginary'"),
        (lambda file: file.__delitem__("MetaData"), "positions of the elements are missing"),
        (lambda file: file.move("CsmData/binCenterFrequenciesHz", "other"), "there is no"),
    ],
)
def test_a_benchmark_file_with_a_part_missing_names_it(tmp_path, change, message):
    path = tmp_path / "b.h5"
    write_benchmark(path, *benchmark(), -1)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(FileFormatError, match=message):
        read(path, frequency_hz=1000.0)


def test_a_benchmark_with_reversed_axes_is_recognised(tmp_path):
    csm, frequencies, positions = benchmark()
    path = tmp_path / "b.h5"
    write_benchmark(path, np.ascontiguousarray(csm.T), frequencies, positions, -1)
    with pytest.raises(FileFormatError, match="as if its axes were reversed"):
        read(path, frequency_hz=1000.0)
    write_benchmark(path, csm, frequencies, positions, -1)
    with pytest.raises(FileFormatError, match="4 frequencies from 500 to 2000 Hz; choose one"):
        read(path)
