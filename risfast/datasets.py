"""Small measurements to try things on, one call each, simulated from a seed when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from risfast.geometry import SensorArray, cartesian_to_spherical
from risfast.io import SPEED_OF_SOUND_M_S, Recording, Snapshots, from_samples
from risfast.io.guard import Array
from risfast.setup import Setup
from risfast.simulate import SystemConfig, generate_scenes
from risfast.steering import steering_vectors

_RATE_HZ = 16_000
_MACHINES_M = ((-0.9, -0.3, 1.8), (0.1, 0.2, 1.2), (1.0, -0.1, 2.4))
_MACHINES_SNR_DB = 10.0
_HERTZ_OF_CIRCLE = 433.92e6


class Sample(NamedTuple):
    """A measurement, and the truth that it was simulated with.

    Attributes
    ----------
    recording : Recording
        What :meth:`risfast.Localizer.localize` takes; its ``setup`` says array and bands.
    position : float64 tensor, shape (K, 3)
        Azimuth and elevation in radians, range in metres (infinite in the far field) of the true sources.
    """

    recording: Recording
    position: Tensor


def sound_at(
    positions_m: Any,
    places_m: Any,
    sample_rate_hz: float = _RATE_HZ,
    *,
    seconds: float = 1.0,
    snr_db: float = 20.0,
    gains: Sequence[float] | None = None,
    seed: int = 0,
) -> Array:
    """Sound pressure at microphones before point sources of independent white noise, without a room.

    Parameters
    ----------
    positions_m : array_like, shape (N, 3)
        Of the microphones, x, y and z.
    places_m : array_like, shape (K, 3)
        Of the sources, in the same coordinates.
    sample_rate_hz : float
    seconds : float
        Length.
    snr_db : float
        Of the sound of all sources over the independent noise of the microphones.
    gains : sequence of N floats, optional
        What each microphone makes of the sound; 1 by default.
    seed : int

    Returns
    -------
    float64 array, shape (L, N)
        Of RMS 0.1.

    Raises
    ------
    ValueError
        Positions or places that are not rows of three, a source at a microphone, gains that are not N, or a length of
        fewer than two samples.
    """
    microphones, places = (np.asarray(value, dtype=np.float64) for value in (positions_m, places_m))
    for name, value in (("positions_m", microphones), ("places_m", places)):
        if value.ndim != 2 or value.shape[1] != 3 or not len(value):
            raise ValueError(f"{name} must have shape (any number, 3): x, y and z in metres; got {value.shape}")
    if gains is not None and len(gains) != len(microphones):
        raise ValueError(f"gains must be {len(microphones)} numbers, one for each microphone, got {len(gains)}")
    samples = seconds * sample_rate_hz
    if not 2 <= samples < math.inf:
        raise ValueError(f"seconds must be at least 2 samples, {2 / sample_rate_hz:g} s, got {seconds!r}")
    length, random = round(samples), np.random.default_rng(seed)
    frequency = np.fft.rfftfreq(length, 1 / sample_rate_hz)[:, None]
    heard = np.zeros((length, len(microphones)))
    for place in places:
        distance = np.linalg.norm(microphones - place, axis=1)
        if not distance.all():
            raise ValueError(f"places_m must not be those of microphones, got {place.tolist()}")
        delayed = np.exp(-2j * math.pi * frequency * distance / SPEED_OF_SOUND_M_S) / distance
        heard += np.fft.irfft(np.fft.rfft(random.standard_normal(length))[:, None] * delayed, length, axis=0)
    heard += math.sqrt((heard**2).mean() / 10 ** (snr_db / 10)) * random.standard_normal(heard.shape)
    heard *= 1.0 if gains is None else np.asarray(gains)
    return np.asarray(0.1 * heard / heard.std())


def gaussian_snapshots(steering: Tensor, count: int, *, snr_db: float = 20.0, seed: int = 0) -> Array:
    """Snapshots of independent Gaussian signals of unit power, and white noise.

    Parameters
    ----------
    steering : complex tensor, shape (K, N)
        A row for each source, times its amplitude where that is not 1.
    count : int
        L.
    snr_db : float
        Of a source of amplitude 1 at one element.
    seed : int

    Returns
    -------
    complex128 array, shape (L, N)
    """
    random = np.random.default_rng(seed)

    def gaussian(columns: int) -> Array:
        return (random.standard_normal((count, columns, 2)) @ np.array([1, 1j])) / math.sqrt(2)

    noise = 10 ** (-snr_db / 20) * gaussian(steering.shape[1])
    return gaussian(len(steering)) @ steering.numpy() + noise


def _microphones() -> Array:
    """64 places on a spiral in the x-y plane, 0.5 m across: no two distances between them are alike."""
    turn = np.arange(64)
    radius, angle = 0.25 * np.sqrt((turn + 0.5) / 64), turn * math.pi * (3 - math.sqrt(5))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), 0.0 * turn], 1)


def three_machines() -> Sample:
    """Three noisy machines 1.2 to 2.6 m before 64 microphones on a spiral of half a metre, 800 to 4000 Hz.

    Returns
    -------
    Sample
        Covariances of narrow bands from one second at 16 kHz.
    """
    samples = sound_at(_microphones(), _MACHINES_M, snr_db=_MACHINES_SNR_DB)
    recording = from_samples(samples, _RATE_HZ, _microphones(), frequency_hz=(800.0, 4000.0), most_bands=12)
    return Sample(recording, cartesian_to_spherical(torch.tensor(_MACHINES_M, dtype=torch.float64)))


def write_three_machines(folder: str | Path) -> tuple[Path, Path]:
    """The recording of :func:`three_machines` as files, for ``risfast locate``.

    Parameters
    ----------
    folder : str or Path
        It must exist; files of these names in it are replaced.

    Returns
    -------
    tuple of two Path
        ``machines.wav`` of 64 channels in 16 bit (2 MB), and ``microphones.csv`` with x, y and z in metres.
    """
    from scipy.io import wavfile  # noqa: PLC0415  (slow to import)

    sound, places = Path(folder) / "machines.wav", Path(folder) / "microphones.csv"
    samples = sound_at(_microphones(), _MACHINES_M, snr_db=_MACHINES_SNR_DB)
    wavfile.write(sound, _RATE_HZ, np.round(samples / np.abs(samples).max() * 32000).astype(np.int16))
    np.savetxt(places, _microphones(), delimiter=",", fmt="%.6f")
    return sound, places


def five_element_circle(*, bearings_deg: Sequence[float] = (62.0,), snr_db: float = 10.0, seed: int = 0) -> Sample:
    """Transmitters at 433.92 MHz around five antennas on a circle of 0.28 m radius, far away.

    Parameters
    ----------
    bearings_deg : sequence of float
        Of the transmitters; 0 along z, 90 along x.
    snr_db : float
        Of each transmitter at each antenna.
    seed : int

    Returns
    -------
    Sample
        400 snapshots.
    """
    array = SensorArray.circular(5, 0.28, 299_792_458.0 / _HERTZ_OF_CIRCLE, plane="xz")
    bearing = torch.tensor(bearings_deg, dtype=torch.float64).deg2rad()
    position = torch.stack([bearing, 0 * bearing, torch.full_like(bearing, math.inf)], -1)
    snapshots = gaussian_snapshots(
        steering_vectors(array, *position.T, wavefront="planar"), 400, snr_db=snr_db, seed=seed
    )
    given = Setup(array, wavefront="planar", sampling="direct")
    return Sample(Recording(array, snapshots=Snapshots.of(snapshots), given=given), position)


def surface_measurement(*, n_sources: int = 3, snr_db: float = 12.0, snapshots: int = 64, seed: int = 0) -> Sample:
    """Transmitters before a reconfigurable surface of 12 x 12 elements, seen by 16 antennas behind it.

    Parameters
    ----------
    n_sources : int
        1 to 5, at 1 to 6 m.
    snr_db : float
    snapshots : int
        Each with phase codes of its own.
    seed : int

    Returns
    -------
    Sample
        Snapshots with codes and channel, for ``Localizer.from_pretrained()``.

    Raises
    ------
    ValueError
        Another number of sources.
    """
    if n_sources not in range(1, 6):
        raise ValueError(f"n_sources must be 1 to 5, got {n_sources!r}")
    system = SystemConfig(
        n_sources=(n_sources, n_sources), n_snapshots=snapshots, snr_db=(snr_db, snr_db), range_m=(1.0, 6.0)
    )
    scene = generate_scenes(system, seed, [0])
    recording = Recording(
        system.array,
        snapshots=Snapshots.of(scene.y[0].numpy()),
        codes=scene.codes[0],
        channel=scene.channel[0],
        given=system.setup,
    )
    return Sample(recording, scene.position[0][scene.mask[0]].double())
