"""Scenes of the reference system, or of any other, made in batches on the device.

A scene is a function of (configuration, seed, index): it does not depend on the batch that it is made in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

import torch
from torch import Tensor

from risfast.covariance import SensingOperator
from risfast.geometry import REFERENCE_AZIMUTH_RAD, REFERENCE_ELEVATION_RAD, Region, SensorArray, direction_cosines
from risfast.setup import Sampling, Setup, check_sampling
from risfast.simulate.channels import add_noise, rician_channel, source_symbols
from risfast.simulate.codes import CODE_KINDS, make_codes
from risfast.simulate.impairments import Impairments, impair_codes, impaired_steering
from risfast.simulate.streams import SceneRandom, Stream
from risfast.steering import Wavefront, check_wavefront, steering_vectors

GAINS = ("equal", "inverse_range")


@dataclass(frozen=True)
class Coherence:
    """Coherent sources: copies of one signal, as reflections make them. The default is none.

    Parameters
    ----------
    probability : float in [0, 1]
        Chance that a scene has a coherent group.
    group_size : int >= 2
        Sources in the group (all of the scene's, if it has fewer).
    correlation : float in [0, 1]
        Magnitude of the correlation of any two of them.

    Raises
    ------
    ValueError
        A value is out of its range.
    """

    probability: float = 0.0
    group_size: int = 2
    correlation: float = 1.0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("probability", "correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)!r}")
        if self.group_size < 2:
            raise ValueError(f"group_size must be at least 2, got {self.group_size!r}")


@dataclass(frozen=True)
class SystemConfig:
    """A system and the distribution of its scenes; the defaults are the reference system.

    Intervals are (low, high) pairs, drawn from uniformly; equal ends fix the value.

    Parameters
    ----------
    array : SensorArray
        The nominal surface, N elements.
    n_antennas, n_snapshots : int
        M and L; an array that is sampled directly has its N elements for antennas.
    azimuth_rad, elevation_rad, range_m : pair of float
        Where sources are, uniform in each coordinate.
    n_sources : pair of int
        Fewest and most sources K. K = 0 makes scenes of noise alone.
    snr_db : pair of float
        SNR = mean |y_clean|^2 / sigma^2 in dB.
    code_kinds : tuple of str
        Each scene takes one of these, all equally likely: see :func:`risfast.simulate.codes.make_codes`.
    code_bits : int or None
        Phase resolution of the codes; None is continuous.
    n_beams : {16, 32, 64} or None
        Size of the DFT codebook; None goes by ``n_snapshots``.
    rician_factor : pair of float
        Rician factor, linear.
    gain : {"equal", "inverse_range"}
        Power of a source: 1, or (1 m / range)^2.
    min_separation_rad : float
        Least angle between the directions of two sources; 0 is no limit.
    wavefront : {"spherical", "fresnel", "planar"}
        Of the waves that make the measurements.
    impairments : Impairments
        How far the true system is from this nominal one.
    coherence : Coherence
        Coherent sources.
    sampling : {"surface", "direct"}
        Whether antennas see the array through codes and a channel, or each element is sampled itself: codes of one and
        an identity for a channel. Errors of codes are then errors of the elements' gains.
    wavelengths_m : tuple of float, optional
        Of F narrow bands that an array which is sampled directly hears its sources in, as :class:`risfast.Setup` takes
        them: a source has the same power in each, the SNR is the same, symbols and noise are independent. By default
        the array's alone.

    Raises
    ------
    ValueError
        A value is out of its range, an interval is empty, or an option is unknown.
    """

    array: SensorArray = field(default_factory=SensorArray.rectangular)
    n_antennas: int = 16
    n_snapshots: int = 64
    azimuth_rad: tuple[float, float] = (-REFERENCE_AZIMUTH_RAD, REFERENCE_AZIMUTH_RAD)
    elevation_rad: tuple[float, float] = (-REFERENCE_ELEVATION_RAD, REFERENCE_ELEVATION_RAD)
    range_m: tuple[float, float] = (0.5, 10.0)
    n_sources: tuple[int, int] = (1, 5)
    snr_db: tuple[float, float] = (-5.0, 20.0)
    code_kinds: tuple[str, ...] = ("dft", "random")
    code_bits: int | None = 3
    n_beams: int | None = None
    rician_factor: tuple[float, float] = (0.5, 10.0)
    gain: str = "equal"
    min_separation_rad: float = 0.0
    wavefront: Wavefront = "spherical"
    impairments: Impairments = field(default_factory=Impairments)
    coherence: Coherence = field(default_factory=Coherence)
    sampling: Sampling = "surface"
    wavelengths_m: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        check_wavefront(self.wavefront)
        check_sampling(self.sampling)
        for name in ("n_antennas", "n_snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        limits = {
            "azimuth_rad": (-math.pi, math.pi),
            "elevation_rad": (-math.pi / 2, math.pi / 2),
            "range_m": (0.0, math.inf),
            "n_sources": (0, math.inf),
            "snr_db": (-300.0, 300.0),  # what float64 powers hold
            "rician_factor": (0.0, math.inf),
        }
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not (least <= low <= high <= most and math.isfinite(high)):
                raise ValueError(
                    f"{name} must be (low, high) with {least:g} <= low <= high <= {most:g}, got {(low, high)}"
                )
        if not self.range_m[0] > 0:
            raise ValueError(f"range_m must start above 0, got {self.range_m}")
        if not all(isinstance(k, int) for k in self.n_sources):
            raise ValueError(f"n_sources must be a pair of integers, got {self.n_sources}")
        if not self.code_kinds or any(kind not in CODE_KINDS for kind in self.code_kinds):
            raise ValueError(f"code_kinds must name some of {', '.join(CODE_KINDS)}; got {self.code_kinds!r}")
        if self.gain not in GAINS:
            raise ValueError(f"gain must be one of {', '.join(GAINS)}; got {self.gain!r}")
        if not 0 <= self.min_separation_rad <= math.pi:
            raise ValueError(f"min_separation_rad must lie in [0, pi], got {self.min_separation_rad!r}")
        if self.wavelengths_m is not None:
            setup = self.setup  # which checks them
            object.__setattr__(self, "array", setup.array)
            object.__setattr__(self, "wavelengths_m", None if setup.n_bands == 1 else setup.wavelengths_m)

    @property
    def setup(self) -> Setup:
        """The problem that these scenes pose."""
        region = Region(self.azimuth_rad, self.elevation_rad, self.range_m)
        return Setup(self.array, region, self.wavefront, self.sampling, wavelengths_m=self.wavelengths_m)  # type: ignore[arg-type]

    @property
    def max_sources(self) -> int:
        """K_max, the size of the source axis of :class:`Scenes`."""
        return int(self.n_sources[1])


# Candidates a source may draw until one is far enough from the sources before it. Five sources 10 degrees apart cover
# at most a sixth of the reference field of view: the chance that all candidates fail is below 1e-49.
_PLACEMENT_ATTEMPTS = 64


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes: what an estimator is given, and the answer.

    ``y``, ``codes``, ``channel``, ``noise_power`` and ``snr_db`` are the estimator's (the codes and the channel are the
    nominal ones); ``position``, ``mask``, ``power`` and ``coherent`` are the answer.

    Attributes
    ----------
    config : SystemConfig
        Holds the nominal array.
    indices : int64 tensor, shape (B,)
        Which scenes of the endless set.
    y : complex tensor, shape (B, L, M), or (B, F, L, M) of several bands
        Snapshots, noise included.
    codes : complex tensor, shape (B, L, N)
        Nominal codes c_l.
    channel : complex tensor, shape (B, M, N)
        H.
    noise_power : real tensor, shape (B,), or (B, F) of several bands
        sigma^2, linear.
    snr_db : real tensor, shape (B,)
        mean |y_clean|^2 / sigma^2 in dB; -inf without sources.
    position : real tensor, shape (B, K_max, 3)
        Azimuth, elevation (radians), range (metres); zero where masked.
    mask : bool tensor, shape (B, K_max)
        True where there is a source; the sources of a scene come first.
    power : real tensor, shape (B, K_max)
        p_k, linear; zero where masked.
    coherent : bool tensor, shape (B, K_max)
        Which sources belong to the coherent group of the scene.
    """

    config: SystemConfig
    indices: Tensor
    y: Tensor
    codes: Tensor
    channel: Tensor
    noise_power: Tensor
    snr_db: Tensor
    position: Tensor
    mask: Tensor
    power: Tensor
    coherent: Tensor

    @property
    def n_sources(self) -> Tensor:
        """K of each scene, int64 (B,)."""
        return self.mask.sum(-1)

    def __len__(self) -> int:
        """B."""
        return self.y.shape[0]

    def to(self, device: torch.device | str) -> Scenes:
        """The same scenes on another device.

        Parameters
        ----------
        device : device
            Where every tensor goes; the configuration stays on the CPU.

        Returns
        -------
        Scenes
        """
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "config"}
        return replace(self, **tensors)

    def true_factor(self) -> Tensor:
        """F with columns sqrt(p_k) a_k on the nominal array, zero where masked: complex (B, N, K_max).

        Of several bands that of the shortest wavelength.

        Notes
        -----
        a_k belongs to the true position and the nominal array: with impairments the measurements differ from it, and
        that is the mismatch that an estimator must bear.
        """
        azimuth, elevation, r = self.position.double().unbind(-1)
        r, wavefront = torch.where(self.mask, r, torch.ones_like(r)), self.config.wavefront
        steering = steering_vectors(
            self.config.array, azimuth, elevation, r, wavefront=wavefront, dtype=torch.complex128
        )
        return (self.power.double().sqrt()[..., None] * steering).mT.to(self.y.dtype)

    def true_covariance(self) -> Tensor:
        """R = sum_k p_k a_k a_k^H, complex (B, N, N); cross terms of coherent sources are left out."""
        factor = self.true_factor()
        return factor @ factor.mH


def generate_scenes(
    config: SystemConfig,
    seed: int,
    indices: Sequence[int] | Tensor,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.complex64,
) -> Scenes:
    """Make the scenes ``indices`` of the endless set that ``config`` and ``seed`` define.

    Parameters
    ----------
    config : SystemConfig
        The system and the distribution of its scenes.
    seed : int in [0, 2^64)
        Which endless set.
    indices : sequence of int or int64 tensor, shape (B,)
        Which of its scenes, each >= 0; may be empty.
    device : device
        Where the scenes are made and stay.
    dtype : torch.complex64 or torch.complex128
        Of the complex results; the real ones are float32 or float64 to match. All is computed in float64.

    Returns
    -------
    Scenes

    Raises
    ------
    ValueError
        ``dtype`` is not complex, the seed or an index is out of range, or ``min_separation_rad`` leaves a source no
        place.

    Notes
    -----
    Draws are the same bits for any batch and any device; results agree to the rounding of float64 (before the cast to
    ``dtype``). Peak memory is about 100 bytes a code element, 1 MB a scene of the reference system.
    """
    if dtype not in (torch.complex64, torch.complex128):
        raise ValueError(f"dtype must be torch.complex64 or torch.complex128, got {dtype}")
    draws = SceneRandom(seed, indices, device)
    position, mask = _place_sources(config, draws)
    power = mask.double()
    if config.gain == "inverse_range":
        power = power / position[..., 2].square()
    coherent = _coherent_group(config, draws, mask)

    if config.sampling == "direct":
        n = config.array.n_elements
        eye = torch.eye(n, dtype=torch.complex128, device=draws.device)
        codes = torch.ones_like(eye[0]).expand(draws.batch, config.n_snapshots, n)
        channel = eye.expand(draws.batch, n, n)
    else:
        codes = _draw_codes(config, draws)
        low, high = config.rician_factor
        factor = low + (high - low) * draws.uniform(Stream.RICIAN_FACTOR)
        channel = rician_channel(config.array, config.n_antennas, factor, draws, dtype=torch.complex128)

    true_codes = impair_codes(codes, config.array, config.impairments, draws)
    low, high = config.snr_db
    snr_db = low + (high - low) * draws.uniform(Stream.SNR)
    received = []
    for band, wavelength_m in enumerate(config.wavelengths_m or (config.array.wavelength_m,)):
        own, array = draws.of_band(band), SensorArray(config.array.positions_m, wavelength_m)
        symbols = source_symbols(
            config.n_snapshots,
            power,
            own,
            correlation=config.coherence.correlation,
            coherent=coherent if config.coherence.probability else None,
        )
        steering = impaired_steering(array, position, config.wavefront, config.impairments, draws)
        clean = SensingOperator(true_codes, channel).apply(symbols @ steering)
        received.append(add_noise(clean, snr_db, own))
    y, noise_power = (
        received[0] if len(received) == 1 else (torch.stack(each, 1) for each in zip(*received, strict=True))
    )

    real = dtype.to_real()
    return Scenes(
        config=config,
        indices=draws.indices,
        y=y.to(dtype),
        codes=codes.to(dtype),
        channel=channel.to(dtype),
        noise_power=noise_power.to(real),
        snr_db=torch.where(mask.any(-1), snr_db, -math.inf).to(real),
        position=torch.where(mask[..., None], position, 0.0).to(real),
        mask=mask,
        power=power.to(real),
        coherent=coherent,
    )


def _place_sources(config: SystemConfig, draws: SceneRandom) -> tuple[Tensor, Tensor]:
    """Positions (B, K_max, 3), valid everywhere, and the mask (B, K_max) of those that exist."""
    k_max = config.max_sources
    fewest, most = config.n_sources
    count = draws.integers(Stream.SOURCE_COUNT, fewest, most + 1)
    mask = torch.arange(k_max, device=draws.device) < count[:, None]
    attempts = _PLACEMENT_ATTEMPTS if config.min_separation_rad else 1
    low, high = torch.tensor(
        [config.azimuth_rad, config.elevation_rad, config.range_m], dtype=torch.float64, device=draws.device
    ).T
    candidates = low + (high - low) * draws.uniform(Stream.POSITION, (attempts, k_max, 3))  # [B, T, K_max, 3]
    if not config.min_separation_rad or k_max == 0:
        return candidates[:, 0], mask
    return _separate(candidates, mask, config.min_separation_rad), mask


def _separate(candidates: Tensor, mask: Tensor, min_separation_rad: float) -> Tensor:
    """Give each source in turn its first candidate that is far enough in angle from the sources before it."""
    chosen: list[Tensor] = []
    for k in range(mask.shape[1]):
        candidate = candidates[:, :, k]  # [B, T, 3]
        direction = direction_cosines(candidate[..., 0], candidate[..., 1])
        free = torch.ones(candidate.shape[:2], dtype=torch.bool, device=candidate.device)
        for other in chosen:
            chord = direction - direction_cosines(other[:, None, 0], other[:, None, 1])
            # half the chord is the sine of half the angle: exact for small angles, where arccos is not
            angle = 2 * (chord.norm(dim=-1) / 2).clamp_max(1).asin()
            free &= angle >= min_separation_rad
        stuck = mask[:, k] & ~free.any(1)
        if bool(stuck.any()):
            raise ValueError(
                f"min_separation_rad = {min_separation_rad:g} leaves no place for source {k + 1} in "
                f"{int(stuck.sum())} of {len(stuck)} scenes; lower it, or n_sources, or widen the field of view"
            )
        first = free.int().argmax(1)
        chosen.append(candidate.gather(1, first[:, None, None].expand(-1, 1, 3))[:, 0])
    return torch.stack(chosen, 1)


def _coherent_group(config: SystemConfig, draws: SceneRandom, mask: Tensor) -> Tensor:
    """Which sources are coherent: the first ``group_size`` of the scenes that are drawn for it, bool (B, K_max)."""
    if not config.coherence.probability:
        return torch.zeros_like(mask)
    drawn = draws.uniform(Stream.COHERENT_SCENE, (1,)) < config.coherence.probability
    group = mask & (torch.arange(mask.shape[1], device=mask.device) < config.coherence.group_size)
    return group & drawn & (group.sum(1, keepdim=True) > 1)


def _draw_codes(config: SystemConfig, draws: SceneRandom) -> Tensor:
    """Nominal codes (B, L, N), complex128; each scene takes one of the kinds."""
    choice = draws.integers(Stream.CODE_KIND, 0, len(config.code_kinds), (1, 1))
    kinds = partial(
        make_codes,
        n_snapshots=config.n_snapshots,
        array=config.array,
        bits=config.code_bits,
        n_beams=config.n_beams,
        draws=draws,
        dtype=torch.complex128,
    )
    codes = kinds(config.code_kinds[0])
    for i, kind in enumerate(config.code_kinds[1:], start=1):
        codes = torch.where(choice == i, kinds(kind), codes)
    return codes
