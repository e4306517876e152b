"""Channels of a recording that cannot be what the array says: dead, far too loud, turning in phase, exchanged.

Everything is read from the sample covariance. Of K sources a channel is predicted by the others, up to the noise, as
long as they outnumber the sources: what they leave of it is (1 - the squared multiple coherence). A channel whose phase
turns against theirs is left whole, and one source gives a covariance of rank two or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import direction_cosines
from risfast.localize.likelihood import Box, squared_magnitude
from risfast.localize.pipeline import Localisation
from risfast.models import Measurement
from risfast.models.direct import SteeredAtoms
from risfast.setup import Setup
from risfast.sources import Sources
from risfast.steering import steering_phase, steering_phase_gradient

_FEWEST = 4  # channels that a test needs
_FEWEST_SNAPSHOTS = 2.0  # that tell what noise makes of one source
_OFF_DB = 20.0  # that a power may differ from the others' before it is no power of this array
_MANY_SNAPSHOTS = 32  # of which noise has no power 20 dB off, in as many channels as there may be
_SILENT_DB = 10.0  # below the others: of a channel that does not follow them, it is dead
_RARE = 1e-4  # probability of a false alarm of a test on a recording of noise-like signals
_LOADING = 0.05  # of the power of a channel: what a prediction from few snapshots is held by
# A channel that does not follow the others is left to this part of its power, and to so many times the median of all.
_LEFT, _TIMES = 0.3, 6.0
# Squared coherence of channels that hear one source alone: with the middle of their group, with each other, and beyond.
_TOGETHER, _WITHIN, _APART = 0.9, 0.75, 0.2
_ONE_SOURCE = 0.8  # share of the largest eigenvalue
_ALIKE = 0.85  # of the power of a group of channels, that one source explains
# Of one source by the array: what is worth a look, also in what noise makes of it, and how much less of it an exchange
# of two channels leaves.
_MISFIT, _MISFIT_TIMES, _BETTER = 0.001, 12.0, 4.0
_PRODUCTS = 1 << 21  # of places and pairs
_STARTS, _PAIRS, _STEPS, _NEWTON_STEPS = 6, 16, 24, 6  # of the search for the place of the source
_BANDS = 3  # that a place is looked for in
# Squared coherence of channels that hear the same, and, times 1 / L, of those that hear noise alone.
_HEARD, _CHANCE = 0.3, 2.0
_SLACK = 0.9  # of limits, for products of single precision
_CONVERGED = 1e-5  # of the longest step
_CENTRE = 13  # of 27 points


class FaultyChannel(NamedTuple):
    """A channel that is better left out.

    Attributes
    ----------
    channel : int
        Its index, from 0.
    reason : str
        What is wrong with it, in words.
    """

    channel: int
    reason: str


def faulty_channels(
    covariance: Tensor, snapshots: float, setup: Setup, atoms: SteeredAtoms | None = None
) -> list[FaultyChannel]:
    """Channels that are dead, 20 dB off, not phase-locked to the others, or exchanged; by their indices.

    Parameters
    ----------
    covariance : complex tensor, shape (N, N) or (F, N, N)
        Of one recording, in each band of the setup.
    snapshots : float
        L, that it is the mean of; the smallest of the bands.
    setup : Setup
        Array, region, wavefront and gains.
    atoms : SteeredAtoms, optional
        Of the setup, where they exist: where an exchange is looked for.

    Returns
    -------
    list of FaultyChannel

    Raises
    ------
    ShapeError
        A covariance of another shape.

    Notes
    -----
    On 12 000 simulated recordings without a fault (a line of 9, a ring of 8, a spiral of 64 elements; 1 to 4 sources,
    SNR 0 to 20 dB, 20 to 200 snapshots) no channel is taken for faulty. Faults that most of the channels share, and
    those of fewer than four channels, cannot be told; an exchange is told of one strong source alone.
    """
    n = setup.array.n_elements
    matrix = covariance.to("cpu", torch.complex128)
    matrix = matrix[None] if matrix.ndim == 2 else matrix
    if matrix.shape != (setup.n_bands, n, n):
        raise ShapeError(f"covariance must have shape ({setup.n_bands}, {n}, {n}), got {tuple(covariance.shape)}")
    matrix = setup.without_gains(matrix)
    found: dict[int, str] = {}
    powers = matrix.diagonal(dim1=1, dim2=2).real
    level_db = _relative_db(powers)
    low, high = _likely_db(n, snapshots)
    if _few_alive(matrix, level_db > high, snapshots):
        level_db = level_db - level_db[level_db > high].median()
    for index, level in enumerate(level_db.tolist()):
        if level < low or level > high:
            what = "no power" if level == -math.inf else f"{abs(level):.0f} dB {'below' if level < 0 else 'above'}"
            found[index] = what if level == -math.inf else f"its power is {what} that of the others"
    _unlocked(matrix, level_db, found)
    _groups(matrix, setup, atoms, found)
    _exchanged(matrix, snapshots, setup, atoms, found)
    return [FaultyChannel(index, found[index]) for index in sorted(found)]


def suspected(covariances: Tensor, snapshots: float) -> Tensor:
    """Recordings that :func:`faulty_channels` may find something in, (B,): a cheap test of all at once.

    covariances (B, F, N, N)
    """
    b, bands, n, _ = covariances.shape
    matrix = covariances.to("cpu")
    powers = matrix.diagonal(dim1=2, dim2=3).real
    level_db = _relative_db(powers)
    low, high = _likely_db(n, snapshots)
    doubtful = ((level_db < low) | (level_db > high)).any(1)
    scale = powers.clamp_min(1e-300).rsqrt()
    coherence = (matrix * scale[..., None] * scale[..., None, :]).to(torch.complex64)
    squared = squared_magnitude(coherence)
    if n >= _FEWEST:
        left = _left(coherence.flatten(0, 1)).view(b, bands, n).median(1).values
        worst, median = left.amax(1), left.median(1).values
        doubtful |= (worst > _SLACK * _LEFT) & (worst > _SLACK * _TIMES * median)
        together = (squared.mean(1) > _TOGETHER).sum(2).amax(1)
        doubtful |= (together >= _FEWEST) & (3 * together + 1 >= 2 * n) & (together < n)
    if n > _FEWEST and snapshots >= _FEWEST_SNAPSHOTS:
        # The largest eigenvalue is at most the root of the sum of all squares.
        share = squared[:, _few_bands(bands)].sum((2, 3)).sqrt().amin(1) / n
        doubtful |= share > _SLACK * _ONE_SOURCE
    return doubtful


def of_channels(measurement: Measurement, channels: Tensor) -> Measurement:
    """Pooled snapshots of some of the channels alone, by their indices (n,)."""
    fields = measurement.fields[..., channels]
    bands = measurement.bands
    whitening = None
    if measurement.whitened:
        inverse = torch.linalg.inv(measurement.channel)
        noise = (inverse @ inverse.mH)[:, channels][:, :, channels]
        eye = torch.eye(len(channels), dtype=noise.dtype, device=noise.device)
        whitening = torch.linalg.solve_triangular(torch.linalg.cholesky(noise), eye, upper=False)
        whitening = whitening.unflatten(0, (-1, bands))
    part = Measurement.direct(fields.unflatten(0, (-1, bands)), whitening=whitening, pooled=measurement.pooled)
    return replace(part, noise_power=measurement.noise_power)


def joined(
    results: Sequence[Localisation], scenes: Sequence[Sequence[int]], channels: Sequence[Sequence[int]], n: int
) -> Localisation:
    """Localisations of some scenes each by some of N channels each, as one; a factor has zeros for the others."""
    total, order = sum(map(len, scenes)), [scene for some in scenes for scene in some]
    place = {scene: number for number, scene in enumerate(order)}

    def sorted_by_scene(name: str) -> list[Any] | None:
        if getattr(results[0], name) is None:
            return None
        values = [value for result in results for value in getattr(result, name)]
        return [values[place[scene]] for scene in range(total)]

    first = results[0].factor
    rank = max(result.factor.shape[-1] for result in results)
    factor = first.new_zeros(total, *first.shape[1:-2], n, rank)
    for result, some, used in zip(results, scenes, channels, strict=True):
        wide = first.new_zeros(len(some), *first.shape[1:-2], n, rank)
        wide[..., list(used), : result.factor.shape[-1]] = result.factor
        factor[torch.as_tensor(some, device=first.device)] = wide
    noise, counted = sorted_by_scene("noise_power"), sorted_by_scene("count_probability")
    return Localisation(
        sorted_by_scene("sources") or [],
        sorted_by_scene("position_covariance"),
        None if noise is None else torch.stack(noise),
        factor,
        {name: sum(result.seconds[name] for result in results) for name in results[0].seconds},
        tuple(why for result in results for why in result.refused),
        tuple(dict.fromkeys(note for result in results for note in result.notes)),
        mismatch=sorted_by_scene("mismatch"),
        copies=sorted_by_scene("copies"),
        count_probability=None if counted is None else torch.stack(counted),
    )


def spread(result: Localisation, scenes: Sequence[int], total: int) -> Localisation:
    """A localisation of some scenes as one of all of them, in which the others have no sources."""
    places = {scene: number for number, scene in enumerate(scenes)}

    def filled(values: Sequence[Any], empty: Any) -> list[Any]:
        return [values[places[scene]] if scene in places else empty for scene in range(total)]

    none, factor, noise = Sources.empty(), result.factor, result.noise_power
    wide = factor.new_zeros(total, *factor.shape[1:])
    wide[list(scenes)] = factor
    if noise is not None:
        of_all = noise.new_full((total, *noise.shape[1:]), torch.nan)
        of_all[list(scenes)] = noise
        noise = of_all
    double = torch.zeros(0, dtype=torch.float64)
    counted = result.count_probability
    if counted is not None:
        of_every = counted.new_full((total, counted.shape[1]), torch.nan)
        of_every[list(scenes)] = counted
        counted = of_every
    optional = {"position_covariance": double.view(0, 3, 3), "mismatch": double, "copies": none}
    more: dict[str, Any] = {
        name: filled(getattr(result, name), empty) for name, empty in optional.items() if getattr(result, name)
    }
    refused = tuple(filled(result.refused, ())) if result.refused else ()
    return result._replace(
        sources=filled(result.sources, none),
        noise_power=noise,
        factor=wide,
        refused=refused,
        count_probability=counted,
        **more,
    )


def _relative_db(powers: Tensor) -> Tensor:
    """Power of each channel over the median, in dB, the median of the bands.

    powers (..., F, N) -> (..., N)
    """
    median = torch.where(powers > 0, powers, torch.nan).nanmedian(-1, keepdim=True).values  # of those that hear at all
    median = median.nan_to_num(nan=1.0)
    return (10 * (powers / median).log10()).median(-2).values


def _few_alive(matrix: Tensor, loud: Tensor, snapshots: float) -> bool:
    """Whether the channels that are far louder than most are the only ones that hear anything."""
    # They hear the same, and the others have noise of their own: chance leaves a squared coherence of 1 / L.
    quiet = (matrix.diagonal(dim1=1, dim2=2).real.amin(0) > 0) & ~loud
    if min(int(loud.sum()), int(quiet.sum())) < 2:
        return False
    among = []
    for group in (loud.nonzero()[:, 0], quiet.nonzero()[:, 0]):
        first, second = torch.triu_indices(len(group), len(group), 1)
        among.append(float(squared_magnitude(_coherences(matrix, group))[:, first, second].mean()))
    return among[0] > max(_HEARD, 2 * _CHANCE / snapshots) and among[1] < _CHANCE / snapshots


def _likely_db(n: int, snapshots: float) -> tuple[float, float]:
    """Powers that chance alone may give one of N channels in so few snapshots, and 20 dB at least."""
    if snapshots >= _MANY_SNAPSHOTS:
        return -_OFF_DB, _OFF_DB
    from scipy.special import gammainccinv, gammaincinv  # noqa: PLC0415 - only where channels are looked at

    ends = (float(inverse(snapshots, _RARE / n)) / snapshots for inverse in (gammaincinv, gammainccinv))
    low, high = (10 * math.log10(max(end, 1e-300)) for end in ends)
    return min(low, -_OFF_DB), max(high, _OFF_DB)


def _rest(n: int, found: dict[int, str]) -> Tensor:
    """Indices of the channels that nothing was found about."""
    return torch.tensor([index for index in range(n) if index not in found], dtype=torch.long)


def _coherences(matrix: Tensor, channels: Tensor) -> Tensor:
    """Covariances (F, n, n) of some of the channels, of unit power each."""
    part = matrix[:, channels][:, :, channels]
    scale = part.diagonal(dim1=1, dim2=2).real.rsqrt()
    return part * scale[:, :, None] * scale[:, None]


def _left(coherence: Tensor) -> Tensor:
    """What the other channels do not predict of the power of each; coherence (F, n, n) -> (F, n)."""
    loaded = coherence + _LOADING * torch.eye(coherence.shape[-1], dtype=coherence.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(loaded)).diagonal(dim1=1, dim2=2).real
    return 1 / inverse - _LOADING


def _unlocked(matrix: Tensor, level_db: Tensor, found: dict[int, str]) -> None:
    """Channels that the others do not predict, the worst first, each without those before it."""
    n = matrix.shape[1]
    while len(rest := _rest(n, found)) >= _FEWEST:
        coherence = _coherences(matrix, rest)
        left = _left(coherence).median(0).values
        worst = int(left.argmax())
        part = float(left[worst])
        if part < _LEFT or part < _TIMES * float(left.median()):
            return
        index = int(rest[worst])
        if float(level_db[index]) < -_SILENT_DB:
            found[index] = f"dead: noise alone, {-float(level_db[index]):.0f} dB below the others"
        else:
            found[index] = f"not phase-locked: {100 * part:.0f} % of its power does not follow the others"


def _groups(matrix: Tensor, setup: Setup, atoms: SteeredAtoms | None, found: dict[int, str]) -> None:
    """What is apart from a majority of channels that hear one source alone, where nothing lies between."""
    rest = _rest(matrix.shape[1], found)
    if len(rest) < _FEWEST:
        return
    squared = _coherences(matrix, rest).abs().square().mean(0)
    together = squared > _TOGETHER
    group = together[int(together.sum(1).argmax())]
    # Two thirds of them (five of eight), for two sources can split an array in halves.
    if int(group.sum()) < _FEWEST or 3 * int(group.sum()) + 1 < 2 * len(rest) or bool(group.all()):
        return
    if float(squared[group][:, group].min()) < _WITHIN or float(squared[group][:, ~group].max()) > _APART:
        return
    # Of two sources, too, some channels may be coherent and the others not: but these are no single source.
    received, _ = _principal(_coherences(matrix[_few_bands(len(matrix))], rest[group]))
    _, fits = _Search(setup, atoms, rest[group]).start(received)
    if float(fits.max()) < _ALIKE:
        return
    for index, own in zip(rest[~group].tolist(), squared[~group][:, group].amax(1).tolist(), strict=True):
        found[index] = f"not phase-locked: its coherence with most of the others is {math.sqrt(own):.2f} or less"


def _exchanged(
    matrix: Tensor, snapshots: float, setup: Setup, atoms: SteeredAtoms | None, found: dict[int, str]
) -> None:
    """Two channels whose exchange makes one strong source fit the array."""
    rest = _rest(matrix.shape[1], found)
    if len(rest) <= _FEWEST or snapshots < _FEWEST_SNAPSHOTS:
        return
    received, share = _principal(_coherences(matrix[_few_bands(len(matrix))], rest))
    if float(share.min()) < _ONE_SOURCE:
        return
    search = _Search(setup, atoms, rest)
    noise = float((1 / share - 1).max()) / (2 * snapshots)
    enough = max(_MISFIT, _MISFIT_TIMES * noise)
    for count in (1, _STARTS):  # mostly the likeliest place is the source's
        starts, fits = search.start(received, count)
        if 1 - float(fits.max()) < enough:
            return
    fits, best = search.refined(received[:, None].expand(-1, len(starts), -1), starts)
    misfit = 1 - float(fits.max())
    if misfit < enough:
        return
    left, right = torch.triu_indices(len(rest), len(rest), 1)
    fit = search.fit(received)
    likely = fit.topk(min(max(_PRODUCTS // len(left), 1), len(fit))).indices
    places = torch.cat([best, search.places[likely]])
    power = torch.zeros(len(places), len(left), dtype=torch.float64)
    for steering, own in zip(search.steering(places), received, strict=True):
        a = steering.conj()
        power += ((a @ own)[:, None] + (a[:, left] - a[:, right]) * (own[right] - own[left])).abs().square()
    pairs = power.amax(0).topk(min(_PAIRS, len(left))).indices
    turned, each = received[:, None].repeat(1, len(pairs), 1), torch.arange(len(pairs))
    turned[:, each, left[pairs]], turned[:, each, right[pairs]] = received[:, right[pairs]], received[:, left[pairs]]
    fits, _ = search.refined(turned, places[power[:, pairs].argmax(0)])
    if _BETTER * (1 - float(fits.max())) > misfit:
        return
    chosen = pairs[int(fits.argmax())]
    one, other = int(rest[left[chosen]]), int(rest[right[chosen]])
    for index, partner in ((one, other), (other, one)):
        found[index] = f"exchanged with channel {partner}: the strongest source fits once they are turned back"


def _few_bands(bands: int) -> list[int]:
    """Some of the bands, evenly: an exchange is one in all of them."""
    return sorted({(2 * i + 1) * bands // (2 * _BANDS) for i in range(_BANDS)})


def _principal(coherence: Tensor) -> tuple[Tensor, Tensor]:
    """Phases (F, n) of the principal eigenvectors, as numbers of modulus one, and their shares (F,) of the power."""
    value, vector = torch.linalg.eigh(coherence)
    return torch.polar(torch.ones_like(vector[..., -1].real), vector[..., -1].angle()), value[:, -1] / value.sum(1)


class _Search:
    """The place of one source by the phases of some of the channels."""

    def __init__(self, setup: Setup, atoms: SteeredAtoms | None, channels: Tensor) -> None:
        atoms = atoms or SteeredAtoms(setup)
        self.setup, self.positions = setup, setup.array.positions_m[channels]
        self.wavelengths = [setup.wavelengths_m[band] for band in _few_bands(setup.n_bands)]
        steering = [atoms.steering[band].cpu() for band in _few_bands(setup.n_bands)]
        every = len(channels) == setup.array.n_elements
        self._atoms = steering if every else [each[:, channels] for each in steering]  # of each band [G, n]
        places = atoms.positions.cpu().double().flatten(0, 2)
        self.places = torch.cat([places[:, :2], 1 / places[:, 2:]], 1)
        none = torch.zeros(1, dtype=torch.float64)
        self.box = Box.of(setup, none, none)

    def fit(self, received: Tensor) -> Tensor:
        """|a_g^H z|^2 of all atoms, (G,), the sum of the bands; received (F, n)."""
        products = [atoms @ own.conj().to(atoms.dtype) for atoms, own in zip(self._atoms, received, strict=True)]
        return torch.stack([squared_magnitude(product) for product in products]).sum(0)

    def steering(self, places: Tensor) -> Tensor:
        """Steering vectors (F, ..., n) of places (..., 3)."""
        azimuth, elevation, inverse = places.unbind(-1)
        direction = direction_cosines(azimuth, elevation)
        path = steering_phase(self.positions, direction, 1 / inverse, 1.0, self.setup.wavefront)
        phase = torch.stack([2 * math.pi / wavelength * path for wavelength in self.wavelengths])
        return torch.polar(torch.ones_like(phase), phase)

    def start(self, received: Tensor, count: int = _STARTS) -> tuple[Tensor, Tensor]:
        """Some places of the source, (J, 3), and the shares (J,) of :meth:`refined` there; received (F, n)."""
        fit = self.fit(received)
        places = self.places[fit.topk(min(count, len(fit))).indices]
        return self.stepped(received[:, None].expand(-1, len(places), -1), places)

    def stepped(self, received: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Places (J, 3) after Gauss-Newton steps on the phases, and the shares (J,) of :meth:`refined` there."""
        for _ in range(_NEWTON_STEPS):
            matrix, slope = torch.zeros(len(place), 3, 3).double(), torch.zeros(len(place), 3, 1).double()
            for wavelength, own in zip(self.wavelengths, received, strict=True):
                way = place[:, 0], place[:, 1], 1 / place[:, 2]
                wave, wavefront = 2 * math.pi / wavelength, self.setup.wavefront
                phase, change = steering_phase_gradient(self.positions, *way, wave, wavefront)
                gap = own * torch.polar(torch.ones_like(phase), -phase)
                gap = (gap * gap.sum(1, keepdim=True).conj()).angle()
                change = change - change.mean(2, keepdim=True)
                matrix += change @ change.mT
                slope += change @ gap[..., None]
            diagonal = matrix.diagonal(dim1=1, dim2=2)
            system = matrix + torch.diag_embed(1e-6 * diagonal + 1e-9 * diagonal.amax(1, keepdim=True) + 1e-300)
            step = torch.linalg.solve(system, slope)[..., 0]
            place = self.box.inside(place + torch.maximum(torch.minimum(step, self.box.longest), -self.box.longest))
            if bool((step.abs() <= _CONVERGED * self.box.longest).all()):
                break
        return place, self._shares(received, place[:, None])[:, 0]

    def _shares(self, received: Tensor, near: Tensor) -> Tensor:
        """Of the received power (F, J, n) along steering vectors of places (J, P, 3): (J, P), the mean of the bands."""
        products = (self.steering(near).conj() * received[:, :, None]).sum(-1)
        return products.abs().square().mean(0) / received.shape[2] ** 2

    def refined(self, received: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Share (J,) of the received power along the best steering vectors near J places, and where these are.

        received (F, J, n), place (J, 3)
        """
        steps = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 3)
        each, size = torch.arange(len(place)), self.box.longest.expand(len(place), 1, 3)
        best = torch.zeros(len(place), dtype=torch.float64)
        for _ in range(_STEPS):
            near = self.box.inside(place[:, None] + steps * size)  # [J, 27, 3]
            total = self._shares(received, near)
            best, index = total.max(1)
            centred = total[:, _CENTRE] >= best * (1 - 1e-12)
            index = torch.where(centred, _CENTRE, index)
            place, size = near[each, index], torch.where(centred[:, None, None], size / 2, size)
        return best, place
