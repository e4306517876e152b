"""Visibilities of a radio telescope in UVH5, as the covariance of its antennas.

Format: "UVH5 file format", pyuvdata memo, Radio Astronomy Software Group; both the older layout with an axis of
spectral windows and the current one. V_ij = <E_i E_j^*> with antenna j conjugated, which is the covariance as it
stands. Positions are turned from the Earth-centred frame to (east, north, up), so that z points at the zenith, azimuth
is from the zenith to the east and elevation to the north.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.assemble import SPEED_OF_LIGHT_M_S, FoundData, ReadOptions
from risfast.io.formats.acoustics import choose_frequency
from risfast.io.formats.hdf5 import Hdf5Container
from risfast.io.guard import Array, check_held, shape_text
from risfast.io.recording import Flagged

_POLARIZATIONS = {1: "I", -1: "rr", -2: "ll", -5: "xx", -6: "yy"}  # of which a covariance can be made
_ALL_POLARIZATIONS = {**_POLARIZATIONS, 2: "Q", 3: "U", 4: "V", -3: "rl", -4: "lr", -7: "xy", -8: "yx"}
_HEADER = ("ant_1_array", "ant_2_array", "antenna_numbers", "antenna_positions", "freq_array", "time_array",
           "polarization_array", "latitude", "longitude")  # fmt: skip
# Schwarz: |V_ij|^2 <= V_ii V_jj for averages over the same samples. Correlators that quantise, or that correct for it,
# break that by a few per cent; beyond this factor the numbers are something else.
_SCHWARZ_SLACK = 1.5
_BASELINE_TOLERANCE_M = 1.0  # as pyuvdata's own check of them


def read_uvh5(path: Path, options: ReadOptions) -> FoundData:
    """One covariance for each integration, at one frequency and polarisation; see :func:`risfast.simulate.read`."""
    # Antennas that are flagged, have no power or lack baselines (in any integration) are left out and listed.
    container = Hdf5Container(path)
    holds = container.holds
    missing = [name for name in (*(f"Header/{item}" for item in _HEADER), "Data/visdata") if name not in holds]
    if missing:
        raise FileFormatError(f"{path}: not complete as UVH5: {', '.join(missing)} is missing")
    header = {item: container.load(f"Header/{item}") for item in _HEADER}
    frequencies = header["freq_array"].reshape(-1).astype(np.float64)
    channel = choose_frequency(path, frequencies, options.check_one(path, "visibilities"))
    polarization = _polarization(path, header["polarization_array"].reshape(-1), options.polarization)
    visibilities, flags = _select(container, channel, polarization, len(frequencies), header["polarization_array"].size)
    numbers, first, second = _antennas(path, header, len(visibilities))
    # Covariances (T, N, N), and which of their entries were measured.
    instants, step = np.unique(header["time_array"].reshape(-1), return_inverse=True)
    shape = (len(instants), len(numbers), len(numbers))
    check_held(path, "the covariances of all integrations", shape, 2 * 16)
    matrix, known = np.zeros(shape, np.complex128), np.zeros(shape, bool)
    above = tuple(index.reshape(-1)[~flags] for index in (step, first, second))
    below = (above[0], above[2], above[1])
    matrix[below] = visibilities[~flags].conj()
    matrix[above] = visibilities[~flags]
    known[below] = known[above] = True
    names = [str(number) for number in numbers]
    flagged = _left_out(path, matrix, known, names)
    _check_schwarz(path, matrix, {flag.index for flag in flagged}, names)
    _check_unphased(container)
    code = int(header["polarization_array"].reshape(-1)[polarization])
    positions = _east_north_up(path, header, numbers)
    notes = ["positions are east, north and up of the middle of the antennas; z points at the zenith"]
    return FoundData(
        path,
        "UVH5",
        holds,
        covariance=matrix,
        positions_m=positions,
        frequency_hz=float(frequencies[channel]),
        chosen=True,
        speed_m_s=SPEED_OF_LIGHT_M_S,
        names={"covariance": "Data/visdata", "positions_m": "Header/antenna_positions"},
        details=_details(container, code, len(matrix)),
        flagged=flagged,
        element_names=names,
        notes=notes + _disagreement(container, positions[second] - positions[first]),
    )


def _polarization(path: Path, codes: Array, wanted: str | None) -> int:
    names = [_ALL_POLARIZATIONS.get(int(code), str(code)) for code in codes]
    usable = [name for name in names if name in _POLARIZATIONS.values()]
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted is None or wanted not in names:
        raise FileFormatError(
            f"{path}: the file holds the polarisations {', '.join(names)}; choose one of {', '.join(usable)} with "
            f"polarization" + (f", got {wanted!r}" if wanted else "")
        )
    if wanted not in usable:
        raise FileFormatError(f"{path}: polarization {wanted!r} is no covariance; choose {', '.join(usable) or 'none'}")
    return names.index(wanted)


def _select(
    container: Hdf5Container, channel: int, polarization: int, n_channels: int, n_polarizations: int
) -> tuple[Array, Array]:
    """Visibilities and flags, each (Nblts,), of one channel and polarisation."""
    path, holds = container.path, container.holds
    shape = holds["Data/visdata"]
    windows = shape[1:-2]
    if len(shape) not in (3, 4) or windows not in ((), (1,)) or shape[-2:] != (n_channels, n_polarizations):
        raise FileFormatError(
            f"{path}: Data/visdata must be (Nblts, Nfreqs, Npols) = (?, {n_channels}, {n_polarizations}), found "
            f"{shape_text(shape)}"
        )
    part = (slice(None), *(0,) * len(windows), channel, polarization)
    visibilities = container.load("Data/visdata", part)
    if visibilities.dtype.kind != "c":
        raise FileFormatError(f"{path}: Data/visdata must be complex, found {visibilities.dtype}")
    parts: dict[str, Array] = {}
    for name, empty in (("Data/flags", np.zeros), ("Data/nsamples", np.ones)):
        if name in holds and holds[name] != shape:
            raise FileFormatError(f"{path}: {name} must be {shape_text(shape)}, found {shape_text(holds[name])}")
        parts[name] = container.load(name, part) if name in holds else empty(len(visibilities))
    flags, samples = parts["Data/flags"].astype(bool), parts["Data/nsamples"]
    bad = ~np.isfinite(samples) | (samples < 0)
    if bad.any():
        raise FileFormatError(
            f"{path}: Data/nsamples holds {int(bad.sum())} numbers of samples that are negative or not finite (the "
            f"first is {samples[bad][0]:g}); the file was not written properly, and its visibilities are not to be "
            "trusted"
        )
    flags |= samples == 0
    broken = ~np.isfinite(visibilities) & ~flags
    if broken.any():
        raise FileFormatError(
            f"{path}: Data/visdata holds {int(broken.sum())} NaN or infinite values that are not flagged"
        )
    return np.where(flags, 0, visibilities).astype(np.complex128), flags


def _antennas(path: Path, header: dict[str, Array], rows: int) -> tuple[Array, Array, Array]:
    """Numbers of the antennas that took part, and for each row the index of both."""
    ends = [header[name].reshape(-1) for name in ("ant_1_array", "ant_2_array")]
    if any(len(end) != rows or end.dtype.kind not in "iu" for end in ends) or header["time_array"].size != rows:
        raise FileFormatError(
            f"{path}: ant_1_array, ant_2_array and time_array must have {rows} entries like Data/visdata, found "
            f"{', '.join(str(header[name].size) for name in ('ant_1_array', 'ant_2_array', 'time_array'))}"
        )
    if not rows:
        raise FileFormatError(f"{path}: there are no visibilities in it")
    numbers = np.unique(np.concatenate(ends))
    unknown = np.setdiff1d(numbers, header["antenna_numbers"])
    if unknown.size:
        raise FileFormatError(f"{path}: antenna {unknown[0]} has visibilities but is not in antenna_numbers")
    return numbers, np.searchsorted(numbers, ends[0]), np.searchsorted(numbers, ends[1])


def _left_out(path: Path, matrix: Array, known: Array, names: list[str]) -> list[Flagged]:
    """Antennas without power or with missing baselines: worst first, until all that are left are complete."""
    missing = ~known.all(0)
    # Nothing on its own and nothing with others: an antenna that hears only with others is damage, not death.
    silent = np.abs(matrix).max((0, 2)) == 0
    dead = silent & ~np.diagonal(missing)
    out = {int(index): "no power" for index in np.flatnonzero(dead)}
    left = ~dead
    while (count := (missing & left & left[:, None]).sum(0)).any():
        worst = int(count.argmax())
        kind = "all" if count[worst] == left.sum() else str(count[worst])
        out[worst] = f"{kind} of its baselines are flagged or missing"
        left[worst] = False
    if left.sum() < 2:
        raise FileFormatError(
            f"{path}: fewer than two antennas have all of their baselines in all {len(matrix)} integrations (the "
            f"autocorrelations count): {out[max(out)] if out else 'there is one antenna'}; no covariance can be made"
        )
    return [Flagged(index, names[index], out[index]) for index in sorted(out)]


def _check_schwarz(path: Path, matrix: Array, out: set[int], names: list[str]) -> None:
    keep = np.array([index for index in range(matrix.shape[1]) if index not in out])
    part = matrix[:, keep[:, None], keep]
    power = part.real[:, np.arange(len(keep)), np.arange(len(keep))]
    if (power <= 0).any():
        worst = names[keep[int((power <= 0).any(0).argmax())]]
        raise FileFormatError(
            f"{path}: the autocorrelation of antenna {worst} is not positive in every integration, so it is no power"
        )
    with np.errstate(over="ignore"):
        ratio = np.abs(part) / np.sqrt(power[:, :, None] * power[:, None, :])
    if ratio.max() > _SCHWARZ_SLACK:
        at = np.unravel_index(int(ratio.argmax()), ratio.shape)
        pair, count = [names[keep[side]] for side in at[1:]], int((ratio > _SCHWARZ_SLACK).sum())
        raise FileFormatError(
            f"{path}: the visibility of antennas {' and '.join(pair)} is {ratio[at]:.3g} times as large as their "
            f"autocorrelations allow ({count} such values): these are not visibilities of one signal, the file is "
            "damaged"
        )


def _check_unphased(container: Hdf5Container) -> None:
    """A covariance is of the antennas as they stand; phases towards a source in the sky belong to another frame."""
    path, holds = container.path, container.holds
    kinds = {
        container.load_text(name)
        for name in holds
        if name.startswith("Header/phase_center_catalog/") and name.endswith("cat_type")
    }
    if "Header/phase_type" in holds:
        kinds.add(
            {"drift": "unprojected", "unknown": "unprojected"}.get(container.load_text("Header/phase_type"), "phased")
        )
    if kinds - {"unprojected"}:
        raise FileFormatError(
            f"{path}: the visibilities are phased to a source ({', '.join(sorted(kinds))}), so the directions of the "
            "array are lost; undo it with pyuvdata (UVData.unproject_phase()) and write the file again"
        )


def _east_north_up(path: Path, header: dict[str, Array], numbers: Array) -> Array:
    positions, listed = header["antenna_positions"], header["antenna_numbers"].reshape(-1)
    if positions.shape != (len(listed), 3) or positions.dtype.kind != "f":
        raise FileFormatError(
            f"{path}: antenna_positions must be ({len(listed)}, 3) in metres, found {shape_text(positions.shape)}"
        )
    angles = [header[name].reshape(-1) for name in ("latitude", "longitude")]
    if any(angle.size != 1 or not np.isfinite(angle).all() for angle in angles):
        raise FileFormatError(f"{path}: latitude and longitude must be single numbers in degrees")
    (sin_lat, cos_lat), (sin_lon, cos_lon) = (
        (np.sin(a), np.cos(a)) for a in np.radians(np.concatenate(angles).astype(float))
    )
    turn = np.array([
        [-sin_lon, cos_lon, 0.0],
        [-sin_lat * cos_lon, -sin_lat * sin_lon, cos_lat],
        [cos_lat * cos_lon, cos_lat * sin_lon, sin_lat],
    ])  # fmt: skip
    order = np.argsort(listed, kind="stable")
    chosen = positions[order[np.searchsorted(listed, numbers, sorter=order)]] @ turn.T
    centred: Array = chosen - chosen.mean(0)
    return centred


def _disagreement(container: Hdf5Container, baselines: Array) -> list[str]:
    """A note if the file's own baselines are not those of its antennas, as happens in old files."""
    name = "Header/uvw_array"
    if container.holds.get(name) != baselines.shape:
        return []
    worst = float(np.abs(container.load(name) - baselines).max())
    if worst <= _BASELINE_TOLERANCE_M:
        return []
    return [f"uvw_array and antenna_positions disagree by up to {worst:.1f} m; antenna_positions are used"]


def _details(container: Hdf5Container, code: int, times: int) -> dict[str, str]:
    details = {"polarization": _ALL_POLARIZATIONS.get(code, str(code)), "integrations": str(times)}
    for name in ("telescope_name", "instrument", "object_name", "vis_units"):
        if f"Header/{name}" in container.holds:
            details[name] = container.load_text(f"Header/{name}")
    return details
