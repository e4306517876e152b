"""From measurements to sources: backbone, detections, likelihood polish."""

from __future__ import annotations

import logging
import math
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from risfast.errors import ShapeError
from risfast.geometry import Region, SensorArray, most_sources
from risfast.localize import pipeline
from risfast.localize.channels import faulty_channels, joined, of_channels, spread, suspected
from risfast.localize.confidence import HitModel
from risfast.localize.count import CountModels, load_counts
from risfast.localize.pipeline import Localisation, Parts, PipelineOptions
from risfast.localize.refiner import Refiner, load_helpful_refiner, load_refiner
from risfast.models import Measurement, build_backbone
from risfast.models.base import single_precision
from risfast.models.direct import SampleCovariance, SteeredAtoms
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.setup import Setup
from risfast.sources import Sources

if TYPE_CHECKING:
    from risfast.io import Recording

_LOG = logging.getLogger("risfast.localize")


def measurement_from(y: Any, codes: Any, channel: Any, noise_power: Any) -> Measurement:
    """Check, batch and convert.

    y (L, M) or (B, L, M), codes (L, N) or (B, L, N), channel (M, N) or (B, M, N), noise_power () or (B,)
    """
    tensors = {"y": _tensor(y, "y"), "codes": _tensor(codes, "codes"), "channel": _tensor(channel, "channel")}
    ranks = {name: t.ndim for name, t in tensors.items()}
    if set(ranks.values()) not in ({2}, {3}):
        raise ValueError(
            "y, codes and channel must all have 2 dimensions (one scene) or all 3 (a batch), got "
            + ", ".join(f"{name} with {rank}" for name, rank in ranks.items())
        )
    if ranks["y"] == 2:
        tensors = {name: t[None] for name, t in tensors.items()}
    _check_rows(tensors["y"], "y")
    scenes = max(map(len, tensors.values()))
    tensors = {name: t.expand(scenes, *t.shape[1:]) if len(t) == 1 else t for name, t in tensors.items()}
    _check_codes(tensors["codes"])
    return _with_noise(Measurement(tensors["y"], tensors["codes"], tensors["channel"]), noise_power)


def _why(bad: dict[int, str]) -> str:
    return "; ".join(f"scene {scene}: {why}" for scene, why in sorted(bad.items()))


def _bad_scenes(on_error: str, bands: int, y: Any, codes: Any, channel: Any) -> dict[int, str]:
    """Why which scenes of a batch are to be skipped; none where they are to raise, or it is no batch of arrays."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be raise or skip, got {on_error!r}")
    given = {name: v for name, v in (("channel", channel), ("codes", codes), ("y", y)) if v is not None}
    whole = all(isinstance(v, np.ndarray | Tensor) and v.ndim == (3 if bands == 1 else 4) for v in given.values())
    if on_error == "raise" or not whole:
        return {}  # whatever else is wrong is told as usual
    scenes = max(map(len, given.values()))
    if any(len(value) not in (1, scenes) for value in given.values()):
        return {}
    bad: dict[int, str] = {}
    for name, value in given.items():
        parts = torch.view_as_real(_complex(value, name)).expand(scenes, *value.shape[1:], 2)
        rows = parts.reshape(scenes, 1 if bands == 1 else value.shape[1], -1)  # [B, F, ...]
        finite = rows.isfinite().all(2).all(1)
        bad |= {scene: f"{name} holds values that are not finite" for scene in (~finite).nonzero()[:, 0].tolist()}
        silent = (rows == 0).all(2).any(1).nonzero()[:, 0].tolist() if name == "y" else []
        bad |= {scene: f"{name} is zero throughout" + (" in a band" if bands > 1 else "") for scene in silent}
    return bad


def _check_rows(y: Tensor, name: str) -> None:
    """Refuse no snapshots (B, 0, M), no antennas, and silence."""
    for axis, what in ((1, "snapshot: L"), (2, "antenna: M")):
        if y.shape[axis] == 0:
            raise ValueError(f"{name} holds no {what} must be at least 1")
    silent = (_largest(y) == 0).nonzero()
    if len(silent):
        raise ValueError(f"{name}[{int(silent[0, 0])}] is zero throughout: there is nothing to localise")


def _largest(values: Tensor) -> Tensor:
    """Largest part of any number of each scene, (B, ..) -> (B,): an absolute value would underflow or overflow."""
    return torch.view_as_real(values).abs().flatten(1).amax(1) if values.numel() else values.new_zeros(len(values)).real


def _check_codes(codes: Tensor) -> None:
    """Refuse codes (B, L, N) of snapshots that differ more in modulus than single precision can weigh together."""
    level = torch.view_as_real(codes).abs().amax((2, 3)).double()  # [B, L]
    least = level.masked_fill(level == 0, math.inf).amin(1)  # snapshots with the surface off are of the noise
    wide = (level.amax(1) > _LARGEST_RATIO * least).nonzero()
    if len(wide):
        scene = int(wide[0, 0])
        raise ValueError(
            f"codes[{scene}]: the moduli of its snapshots differ by a factor of more than {_LARGEST_RATIO:g}, "
            f"{float(least[scene]):.3g} to {float(level[scene].amax()):.3g}; leave out the snapshots that are so weak"
        )


def _with_noise(measurement: Measurement, noise_power: Any) -> Measurement:
    """The measurement with a noise power, checked, where one is given."""
    if noise_power is None:
        return measurement
    noise = torch.as_tensor(noise_power).to(measurement.y.device).double()
    noise = noise.expand(len(measurement)) if noise.ndim == 0 else noise
    if measurement.bands > 1 and noise.ndim == 1:
        noise = noise[:, None].expand(-1, measurement.bands)
    return replace(measurement, noise_power=_checked_noise(noise, measurement))


def direct_measurement(
    x: Any, setup: Setup, noise_power: Any, noise_covariance: Any = None, snapshots: Any = None
) -> Measurement:
    """Snapshots of the elements themselves, or covariances of so many of them, as a measurement.

    x (L, N) or (B, L, N), with F bands (F, L, N) or (B, F, L, N); noise_covariance (N, N), (B, N, N) or (N,)
    """
    tensor, n, bands = _tensor(x, "x"), setup.array.n_elements, setup.n_bands
    several = () if bands == 1 else (bands,)
    counts: tuple[float, ...] | None = None
    if snapshots is not None:
        counts = _snapshot_counts(snapshots, bands)
        tensor = _rows_of(tensor, n, counts)
    rank = 2 + len(several)
    if tensor.ndim not in (rank, rank + 1) or tensor.shape[-1] != n or tensor.shape[-2 - len(several) : -2] != several:
        turned = tensor.ndim in (rank, rank + 1) and tensor.shape[-2] == n
        inner = ", ".join(map(str, (*several, "L", n)))
        raise ShapeError(
            f"x must have shape ({inner}) or (B, {inner}), one row per snapshot{' of each band' if several else ''}, "
            f"got {tuple(tensor.shape)}{'; it looks transposed' if turned else ''}"
        )
    x = tensor if tensor.ndim == rank + 1 else tensor[None]
    for band in range(bands):
        _check_rows(x[:, band] if several else x, f"x[:, {band}]" if several else "x")
    whitening = None if noise_covariance is None else _whitening(noise_covariance, len(x), n).to(x.device)
    return _with_noise(Measurement.direct(x, whitening=whitening, pooled=counts), noise_power)


def _snapshot_counts(snapshots: Any, bands: int) -> tuple[float, ...]:
    """How many independent snapshots a covariance is the mean of, for each band."""
    if isinstance(snapshots, np.ndarray | Tensor | np.generic):
        snapshots = snapshots.tolist()
    counts = tuple(snapshots) if isinstance(snapshots, list | tuple) else (snapshots,) * bands
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in counts)
    if len(counts) != bands or not numbers or not all(1 <= value < math.inf for value in counts):
        raise ValueError(
            f"snapshots must be a number of at least 1{f', or one for each of {bands} bands' if bands > 1 else ''}, "
            f"got {snapshots!r}"
        )
    return tuple(value if isinstance(value, int) else float(value) for value in counts)


def _rows_of(covariance: Tensor, n: int, counts: tuple[float, ...]) -> Tensor:
    """Rows (.., R, N) whose outer products add up to those of the snapshots of a sample covariance (.., N, N)."""
    bands = "" if len(counts) == 1 else f"{len(counts)}, "
    rank = 2 if len(counts) == 1 else 3
    if covariance.ndim not in (rank, rank + 1) or covariance.shape[-2:] != (n, n):
        raise ShapeError(
            f"with snapshots given, x must be a covariance of shape ({bands}{n}, {n}) or (B, {bands}{n}, {n}), got "
            f"{tuple(covariance.shape)}"
        )
    r = covariance.to(torch.complex128)
    if len(r) and float((r - r.mH).abs().amax()) > _HERMITIAN * float(r.abs().amax()):
        raise ValueError("x is not Hermitian: with snapshots given, it must be a covariance")
    whole = len(counts) == 1 and isinstance(counts[0], int)
    weight = r.real.new_tensor(counts)
    weight = (weight[0] if len(counts) == 1 else weight[:, None, None]).sqrt()
    factor = torch.linalg.cholesky_ex((r + r.mH) / 2)
    if not bool(factor.info.any()) and (not whole or counts[0] >= n):
        return factor.L.mT * weight
    value, vector = torch.linalg.eigh((r + r.mH) / 2)
    if bool((value[..., 0] < -_HERMITIAN * value[..., -1]).any()):
        raise ValueError("x is not positive semi-definite: with snapshots given, it must be a covariance")
    value = value.clamp_min(0)
    if whole:  # L whole snapshots have a covariance of rank L at the most
        value, vector = value[..., -int(counts[0]) :], vector[..., -int(counts[0]) :]
    return (vector * value.sqrt()[..., None, :]).mT * weight


def _whitening(noise_covariance: Any, scenes: int, n: int) -> Tensor:
    """W (B, N, N) with W C W^H = I, for C of trace N: the noise that is estimated is a factor of it."""
    try:
        c = torch.as_tensor(noise_covariance).to(torch.complex128)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"noise_covariance must be a matrix or the powers of the channels: {error}") from error
    if c.shape == (n,):
        c = torch.diag(c)
    if c.shape not in ((n, n), (scenes, n, n)):
        raise ShapeError(f"noise_covariance must have shape ({n},), ({n}, {n}) or ({scenes}, {n}, {n}), got {c.shape}")
    trace = c.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    if bool(((c - c.mH).abs().amax((-1, -2)) > _HERMITIAN * trace.abs()).any()):
        raise ValueError("noise_covariance must be Hermitian")
    found = torch.linalg.cholesky_ex(c * (n / trace)[..., None, None])
    if (
        not bool((trace > 0).all())
        or bool((found.info > 0).any())
        or not bool(torch.isfinite(torch.view_as_real(found.L)).all())
    ):
        raise ValueError("noise_covariance must be positive definite (powers of channels must be positive)")
    eye = torch.eye(n, dtype=c.dtype, device=c.device)
    return torch.linalg.solve_triangular(found.L, eye, upper=False).expand(scenes, n, n)


def _complex(value: Any, name: str) -> Tensor:
    if isinstance(value, np.ndarray):  # torch takes no read-only and no reversed arrays
        value = np.require(value, requirements=["C", "W"])
    tensor = torch.as_tensor(value)
    if not tensor.is_complex():
        raise TypeError(f"{name} must be complex64 or complex128, got {tensor.dtype}")
    return tensor.resolve_conj().resolve_neg()


def _tensor(value: Any, name: str) -> Tensor:
    tensor = _complex(value, name)
    finite = torch.isfinite(torch.view_as_real(tensor))
    if not bool(finite.all()):
        scene = f"[{int((~finite.flatten(1).all(1)).nonzero()[0, 0])}]" if tensor.ndim > 2 else ""
        raise ValueError(f"{name}{scene} holds values that are not finite")
    return tensor


def _checked_noise(noise: Tensor, measurement: Measurement) -> Tensor:
    several = (len(measurement), measurement.bands)
    if noise.shape != (several if measurement.bands > 1 else several[:1]):
        more = f" or {several}" if measurement.bands > 1 else ""
        raise ValueError(
            f"noise_power must be one number or have shape ({len(measurement)},){more}, one for each scene, got "
            f"{tuple(noise.shape)}"
        )
    if not bool((torch.isfinite(noise) & (noise > 0)).all()):
        raise ValueError("noise_power must be positive and finite: it is linear (sigma^2), not in dB")
    received = measurement.received.view_as(noise)
    loud = (noise > 3 * received).nonzero()
    if len(loud):
        # What is received holds the noise too: three times as much noise does not happen.
        first = tuple(loud[0].tolist())
        warnings.warn(
            f"noise_power of scene {first[0]} is {float(noise[first]):.3g}, more than three times the mean power "
            f"{float(received[first]):.3g} of its snapshots; is it in dB?",
            stacklevel=5,
        )
    return noise


REFINER_FOLDER = "refiner"
OPTIONS_FILE = "options.toml"
_SBL_STEPS = 30
_FEWEST_CHANNELS = 3
_LARGEST_RATIO = 1e3  # of codes: the maps of atoms hold 60 dB
_SINGLE_EXPONENT = 100  # of two, that single precision holds with room to spare
_PLAIN_EXPONENT = 16  # of two: snapshots and channels of this size or its inverse are taken as they are
_HERMITIAN = 1e-5  # of the largest entry or eigenvalue: what rounding to single precision does to a covariance
# Two elements are the same place where they are closer than this, in wavelengths: 6e-4 rad of phase.
_SAME_PLACE = 1e-4
_SAME_BAND = 1e-6  # relative difference of wavelengths that rounding leaves
_MEND = (
    "take a model of its own (`risfast backbone --system.array FILE`), or Localizer.classical(array) (on the command "
    "line, --model none)"
)
_NOT_DIRECT = (
    "codes and channel were given, and the sampling of this setup is direct; leave them out, or say sampling='surface' "
    "in the setup"
)


class Localizer:
    """Finds sources in what an array, or antennas behind a surface, received.

    Parameters
    ----------
    backbone : nn.Module
        From :func:`risfast.models.build_backbone`, for the setup.
    setup : Setup
        Array of N elements, region, wavefront and sampling; codes and channel are in the order of its positions.
    options : PipelineOptions, optional
    calibration : HitModel, optional
        Of this backbone: turns what the polish ends with into probabilities of a hit, by which sources are kept.
    refiner : Refiner, optional
        Of this backbone, for candidates from "refined".
    counts : mapping of str to CountModel, optional
        Of this backbone: turn evidence into the probability of each number of sources.

    Raises
    ------
    ValueError
        Candidates are to come from a refiner and there is none.

    Examples
    --------
    >>> from risfast import Localizer
    >>> localizer = Localizer.from_pretrained()
    >>> sources = localizer.localize(y, codes, channel)  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: nn.Module,
        setup: Setup,
        options: PipelineOptions | None = None,
        calibration: HitModel | None = None,
        refiner: Refiner | None = None,
        counts: CountModels | None = None,
    ) -> None:
        self.parts = Parts(backbone.eval(), setup, calibration, refiner, counts or {})
        self.options = options or PipelineOptions()
        self._any_sampling = False
        self._by_channels: dict[tuple[int, ...], Parts] = {}
        if self.options.candidates.source == "refined" and refiner is None:
            raise ValueError(
                "candidates.source='refined' needs a refiner, and this model has none whose own test says that it "
                "helps; train one with `risfast refiner`, or take 'own' or 'capon'"
            )

    def __repr__(self) -> str:
        """The backbone and the problem."""
        return f"Localizer({type(self.backbone).__name__}, {self.setup.sampling}, {self.setup.array!r})"

    @property
    def setup(self) -> Setup:
        """The problem that it is for."""
        return self.parts.setup

    @property
    def backbone(self) -> nn.Module:
        """What estimates the covariance."""
        return self.parts.backbone

    @property
    def calibration(self) -> HitModel | None:
        """What turns the end of a polish into probabilities of a hit."""
        return self.parts.calibration

    @classmethod
    def from_pretrained(cls, options: PipelineOptions | Path | str | None = None) -> Localizer:
        """The checkpoint that comes with the package: the reference surface, any codes, 16 to 64 snapshots.

        Parameters
        ----------
        options : PipelineOptions, or path of a file of them, optional

        Returns
        -------
        Localizer

        Raises
        ------
        FileFormatError, ValueError
            As :meth:`load`.
        """
        return cls.load(DEFAULT_MODEL, options=options)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: torch.device | str | None = None,
        options: PipelineOptions | Path | str | None = None,
        refiner: Path | str | None = None,
    ) -> Localizer:
        """A model folder that a training run ended with, and the refiner in its folder ``refiner`` if that helps.

        Parameters
        ----------
        folder : Path or str
            Weights, card and, where they are there, the calibration of the confidence and the options.
        device : torch.device or str, optional
            The CPU by default.
        options : PipelineOptions, or path of a file of them, optional
            By default those that are stored with the model.
        refiner : Path or str, optional
            Model folder of a refiner in place of the one in the folder, whether it helps or not.

        Returns
        -------
        Localizer
            For the setup of the model.

        Raises
        ------
        FileFormatError, ValueError
            A file is missing or damaged, the weights are not the architecture's, or the refiner is another model's.
        """
        from risfast.io.guard import inside  # noqa: PLC0415 - only where a file is read
        from risfast.models.files import MODEL_CARD, load_model  # noqa: PLC0415 - safetensors only where a file is read

        folder, where = Path(folder), device or "cpu"
        stored = inside(folder, OPTIONS_FILE)
        if options is None and stored.is_file():
            options = stored
        if isinstance(options, Path | str):
            from risfast.io.options_file import read_options  # noqa: PLC0415 - only where a file is read

            options = read_options(options)
        module, card = load_model(folder, build_backbone, where)
        setup = Setup.from_json(card["setup"])
        within = folder / REFINER_FOLDER
        if refiner is not None:
            behind: Refiner | None = load_refiner(refiner, card, setup, where)
        else:
            behind = load_helpful_refiner(within, card, setup, where) if (within / MODEL_CARD).is_file() else None
        return cls(module, setup, options, HitModel.load(folder), behind, load_counts(folder)[0])

    @classmethod
    def classical(
        cls,
        setup: Setup | SensorArray,
        *,
        region: Region | None = None,
        options: PipelineOptions | None = None,
    ) -> Localizer:
        """Without any checkpoint, for any array.

        Behind a surface candidates come from 30 steps of the sparse covariance fit; of an array that is sampled
        directly, from the Capon map of its sample covariance.

        Parameters
        ----------
        setup : Setup or SensorArray
            An array alone is looked at over all that it can tell apart (:meth:`risfast.geometry.Region.of`).
        region : Region, optional
            In place of the setup's.
        options : PipelineOptions, optional

        Returns
        -------
        Localizer
            Without a calibration and without a refiner.

        Raises
        ------
        ValueError
            The region is behind the array, or does not follow from it and is not given.
        """
        bare = isinstance(setup, SensorArray)
        problem = Setup(setup, region) if isinstance(setup, SensorArray) else setup  # type: ignore[arg-type]
        if region is not None:
            problem = problem.replace(region=region)
        backbone: nn.Module
        if problem.sampling == "direct":
            backbone = SampleCovariance(problem.replace(gains=None))  # it sees what falls on the elements
        else:
            with single_precision():
                backbone = UnrolledBackbone(problem, UnrolledOptions(steps=_SBL_STEPS, corrections=False))
        made = cls(backbone, problem, options)
        made._any_sampling = bare  # nothing was said of it: the data tell
        return made

    @cached_property
    def _directly(self) -> Localizer:
        """The same for data that are sampled directly, where nothing was said of that."""
        made = Localizer.classical(self.setup.replace(sampling="direct"), options=self.options)
        return made.to(next(self.backbone.buffers()).device)

    def unlike(self, array: SensorArray | Setup) -> str | None:
        """Why data of an array cannot be the model's, at any scale and in any order.

        Parameters
        ----------
        array : SensorArray or Setup

        Returns
        -------
        str or None
            None where they can.
        """
        try:
            _fitted(array, self.setup)
        except ValueError as error:
            return str(error).removesuffix(f"; {_MEND}")
        return None

    def to(self, device: torch.device | str) -> Localizer:
        """The same on another device.

        Parameters
        ----------
        device : torch.device or str

        Returns
        -------
        Localizer
            This one: its networks move in place.
        """
        self.__dict__.pop("_directly", None)
        self._by_channels.clear()
        self.parts.backbone.to(device)
        self.parts.atoms.to(device)
        if self.parts.refiner is not None:
            self.parts.refiner.network.to(device)
        return self

    def localize(
        self,
        y: Any,
        codes: Any = None,
        channel: Any = None,
        *,
        array: SensorArray | Setup | None = None,
        n_sources: Any = None,
        noise_power: Any = None,
        noise_covariance: Any = None,
        snapshots: float | Sequence[float] | None = None,
        polish: bool | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> list[Sources]:
        """Find the sources of one scene or of a batch.

        Parameters
        ----------
        y : complex array or tensor, shape (L, M) or (B, L, M); or Recording, or Measurement
            Snapshots of the M antennas behind a surface; of an array that is sampled directly, of its N elements,
            without codes and channel. A recording may hold the covariance of an array that is sampled directly, with
            ``effective_snapshots`` or with ``snapshots`` given here.
        codes : complex array or tensor, shape (L, N) or (B, L, N)
            Phase code of the surface in each snapshot.
        channel : complex array or tensor, shape (M, N) or (B, M, N)
            From the surface to the antennas.
        array : SensorArray or Setup, optional
            That the data are of; a recording brings its own. The model's array at another scale (the same positions
            in wavelengths) or in another order is fitted to the model, and said in the notes of :meth:`analyse`.
        n_sources : int or int array, shape (B,), optional
            How many sources there are, where that is known.
        noise_power : float or real array, shape () or (B,), optional
            sigma^2, linear; estimated where it is not given.
        noise_covariance : array or tensor, shape (N, N), (B, N, N) or (N,), optional
            Of an array that is sampled directly: the covariance of its noise, or the power of each channel, up to a
            factor that is estimated. By default all channels have independent noise of one power.
        snapshots : float, or one for each band, optional
            L, where ``y`` is the covariance of an array that is sampled directly, shape (N, N) or (B, N, N), the mean
            of x_l x_l^H over so many independent snapshots. With a setup of F bands, (F, N, N) or (B, F, N, N).
        polish : bool, optional
            Whether the likelihood sharpens what the backbone found; as the options say by default.
        on_error : {"raise", "skip"}
            What a scene of a batch of arrays does that is silent or not finite: it is named in the error, or it has no
            sources, of which a warning (of :meth:`analyse` a note) says why, and the others have theirs.

        Returns
        -------
        list of Sources
            One a scene, strongest first: azimuth and elevation in radians, range in metres (NaN where the data do not
            determine it). ``confidence`` is the probability of lying within the tolerance.

        Raises
        ------
        ShapeError, TypeError, ValueError
            Shapes that do not belong together (a transposed argument is named), values that are not finite, silence,
            no snapshot, a noise power that is not positive, data of another array, or data that lack what the
            sampling of the setup needs.
        """
        given = {"array": array, "n_sources": n_sources, "noise_power": noise_power, "polish": polish}
        own = {"noise_covariance": noise_covariance, "snapshots": snapshots}
        bad = _bad_scenes(on_error, self.setup.n_bands, y, codes, channel)
        result = self._without(bad, y, codes, channel, **given, **own) if bad else None
        if result is None:
            return self.analyse(y, codes, channel, **given, **own).sources
        warnings.warn("; ".join(result.notes[: len(bad)]), stacklevel=2)
        return result.sources

    def analyse(
        self,
        y: Any,
        codes: Any = None,
        channel: Any = None,
        *,
        array: SensorArray | Setup | None = None,
        n_sources: Any = None,
        noise_power: Any = None,
        noise_covariance: Any = None,
        snapshots: float | Sequence[float] | None = None,
        polish: bool | None = None,
        count: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        report: Callable[[int, int], None] | None = None,
    ) -> Localisation:
        """As :meth:`localize`, with the covariances of the positions, the noise, and the time of each stage.

        Parameters
        ----------
        y, codes, channel, array, n_sources, noise_power, noise_covariance, snapshots, polish, on_error
            As :meth:`localize` takes them.
        count : {"off", "equal", "spread"}, optional
            Whether the probability of each number of sources is computed, for sources of equal powers or of powers
            whose spread the scene tells; as the options say by default.
        report : callable, optional
            Told how many of how many scenes are done.

        Returns
        -------
        Localisation

        Raises
        ------
        ShapeError, TypeError, ValueError
            As :meth:`localize`.
        """
        bad = _bad_scenes(on_error, self.setup.n_bands, y, codes, channel)
        if bad:
            return self._without(
                bad,
                *(y, codes, channel),
                array=array,
                n_sources=n_sources,
                noise_power=noise_power,
                noise_covariance=noise_covariance,
                snapshots=snapshots,
                polish=polish,
                count=count,
                report=report,
            )
        measurement, found = self._measurement(y, codes, channel, noise_power, noise_covariance, snapshots)
        if not isinstance(y, Measurement):  # which is whole as it is
            measurement = _with_gains(measurement, array if array is not None else found, self.setup)
        if self._any_sampling and measurement.pooled is not None:
            given = array if array is not None else found
            how = {"n_sources": n_sources, "polish": polish, "count": count, "report": report}
            return self._directly.analyse(measurement, array=given, **how)
        fit = _fitted(array if array is not None else found, self.setup)
        options = self.options if polish is None else replace(self.options, polished=polish)
        options = options if count is None else replace(options, count=count)
        if count not in (None, "off") and not options.polished:
            raise ValueError(f"count={count!r} follows from the polish, and there is to be none")
        counts = _counts(n_sources, len(measurement))
        # Where the noise of each channel is told, what does not follow the others is no news.
        gains = getattr(array if array is not None else found, "gains", None) or self.setup.gains
        checked = options.channels == "check" and measurement.pooled is not None and noise_covariance is None
        checked = checked and len(measurement) > 0 and (gains is not None or not measurement.whitened)
        measurement, exponents = _plain(fit.ordered(measurement))
        with torch.autocast(measurement.y.device.type, enabled=False):  # its formulas need their precision
            if not checked or not isinstance(self.backbone, SampleCovariance):
                result = pipeline.run(self.parts, measurement, options, counts, report)
            else:
                result = self._checked(measurement, options, counts, report, fit.order)
        result = fit.restored(result, result.setup or self.setup)
        said = (*pipeline.mismatch_notes(result.mismatch or []), *_limits(result.setup or self.setup, counts))
        result = result._replace(notes=(*result.notes, *said))
        result = result if exponents is None else _in_units(result, *exponents)
        spent = ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in result.seconds.items())
        _LOG.info("%d scenes, %d sources; %s", len(result.sources), sum(map(len, result.sources)), spent)
        for note in result.notes:
            _LOG.info("%s", note)
        return result

    def _checked(
        self,
        measurement: Measurement,
        options: PipelineOptions,
        counts: Tensor | None,
        report: Callable[[int, int], None] | None,
        order: Tensor | None,
    ) -> Localisation:
        """Each scene by the channels that the data do not show to be faulty; indices in notes are the data's."""
        began = time.perf_counter()
        n, bands = self.setup.array.n_elements, measurement.bands
        least, problem = min(measurement.pooled or ()), self.setup.replace(gains=None)
        atoms: Any = self.backbone.atoms
        by_channels: dict[tuple[int, ...], list[int]] = {}
        notes = []
        covariances = measurement.covariance.unflatten(0, (-1, bands))
        doubtful = suspected(covariances, least).tolist()
        for scene, covariance in enumerate(covariances):
            faults = faulty_channels(covariance, least, problem, atoms) if doubtful[scene] else []
            if n - len(faults) < _FEWEST_CHANNELS:
                named = ", ".join(str(f.channel if order is None else int(order[f.channel])) for f in faults)
                notes.append(
                    f"scene {scene}: {len(faults)} of {n} channels look faulty, too many to do without: all are used, "
                    f"and what is found means little (channels {named}; {faults[0].reason})"
                )
                faults = []
            for fault in faults:
                own = fault.channel if order is None else int(order[fault.channel])
                notes.append(f"scene {scene}: channel {own} is left out: {fault.reason}")
            faulty = {fault.channel for fault in faults}
            by_channels.setdefault(tuple(i for i in range(n) if i not in faulty), []).append(scene)
        spent, done, results = time.perf_counter() - began, 0, []

        def told(now: int, total: int) -> None:
            if report is not None:
                report(done + now, len(measurement))

        for channels, scenes in by_channels.items():
            index = torch.tensor(scenes)
            part = measurement if len(by_channels) == 1 else measurement[index]
            if len(channels) < n:
                part = of_channels(part, torch.tensor(channels))
            known = None if counts is None else counts[index]
            results.append(pipeline.run(self._using(channels), part, options, known, told))
            done += len(scenes)
        result = results[0]
        if len(by_channels) != 1 or len(channels) < n:
            result = joined(results, list(by_channels.values()), list(by_channels), n)
        seconds = {"channels": spent, **result.seconds}
        notes = [note.removeprefix("scene 0: ") for note in notes] if len(measurement) == 1 else notes
        return result._replace(notes=(*notes, *result.notes), seconds=seconds, setup=self.setup)

    def _without(self, bad: dict[int, str], y: Any, codes: Any, channel: Any, **how: Any) -> Localisation:
        """The scenes that can be localised, and nothing in the places of the others."""
        count = max(len(v) for v in (y, codes, channel) if v is not None)
        good = [scene for scene in range(count) if scene not in bad]
        if not good:
            raise ValueError(f"no scene can be localised: {_why(bad)}")

        def kept(value: Any, *ranks: int) -> Any:
            """Of the good scenes, what has an entry for each."""
            each = hasattr(value, "ndim") and value.ndim in ranks and len(value) == count
            return torch.as_tensor(value)[good] if each else value

        for name in ("n_sources", "noise_power"):
            if how[name] is not None:
                how[name] = kept(torch.as_tensor(how[name]), 1, 2)
        how["noise_covariance"] = kept(how["noise_covariance"], 3, 4)
        arrays = ((v if v is None or len(v) == 1 < count else _complex(v, "y")[good]) for v in (y, codes, channel))
        result = self.analyse(*arrays, **how)

        def renamed(note: str) -> str:
            """A note with the scene's place in the whole batch."""
            if len(good) == 1:
                return f"scene {good[0]}: {note}"
            return re.sub(r"^scene (\d+):", lambda found: f"scene {good[int(found[1])]}:", note)

        notes = tuple(f"scene {scene} is skipped: {why}" for scene, why in sorted(bad.items()))
        return spread(result, good, count)._replace(notes=(*notes, *map(renamed, result.notes)))

    def _using(self, channels: tuple[int, ...]) -> Parts:
        """What localises by some of the channels alone, made once."""
        if len(channels) == self.setup.array.n_elements:
            return self.parts
        if channels not in self._by_channels:
            array = SensorArray(self.setup.array.positions_m[list(channels)], self.setup.array.wavelength_m)
            setup = self.setup.replace(array=array, gains=None, wavelengths_m=self.setup.wavelengths_m)
            made = Localizer.classical(setup).to(next(self.backbone.buffers()).device)
            self._by_channels[channels] = made.parts
        return self._by_channels[channels]

    def _measurement(
        self, y: Any, codes: Any, channel: Any, noise_power: Any, noise_covariance: Any, snapshots: Any
    ) -> tuple[Measurement, SensorArray | Setup | None]:
        """What was given, checked, and the array or setup that came with it."""
        if isinstance(y, Measurement):
            if codes is not None or channel is not None or noise_power is not None:
                raise ValueError("a Measurement holds codes, channel and noise power: give it alone")
            if self.setup.sampling != "direct" or y.pooled is not None:
                return y if y.pooled is not None else measurement_from(y.y, y.codes, y.channel, y.noise_power), None
            if not _is_direct(y):
                raise ValueError(_NOT_DIRECT)
            return direct_measurement(y.y, self.setup, y.noise_power), None
        array: SensorArray | Setup | None = None
        if hasattr(y, "provenance"):  # a Recording, whose class is not imported before there is one
            y, codes, channel, array, snapshots = _of_recording(y, codes, channel, snapshots, self.setup)
        if codes is None and channel is None:
            if self.setup.sampling != "direct" and not self._any_sampling:
                raise ValueError(
                    "codes and channel are missing: this setup is a surface that antennas look at. For an array that "
                    "is sampled itself take Localizer.classical(Setup(array, sampling='direct'))"
                )
            how = (noise_power, noise_covariance, snapshots)
            return direct_measurement(y, self.setup, *how), array
        if noise_covariance is not None or snapshots is not None:
            raise ValueError("noise_covariance and snapshots are of an array that is sampled directly, without codes")
        if codes is None or channel is None:
            missing = "codes" if codes is None else "channel"
            raise ValueError(f"{missing} is missing: snapshots behind a surface come with its codes and the channel")
        if self.setup.sampling == "direct":
            raise ValueError(_NOT_DIRECT)
        return measurement_from(y, codes, channel, noise_power), array


def _plain(measurement: Measurement) -> tuple[Measurement, tuple[Tensor, Tensor] | None]:
    """A measurement near 1, whatever its units, and the exponents of two by which y, and y over codes and channel, are.

    Powers of two, which change no digit. -> exponents (B,), (B,); None where it was near 1.
    """
    m, bands = measurement, measurement.bands

    def exponents(values: Tensor) -> Tensor:
        largest = _largest(values).double().view(-1, bands).amax(1)
        return torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0)  # ones stay ones

    if not len(m):
        return m, None
    of_y, of_codes, of_channel = (exponents(values) for values in (m.y, m.codes, m.channel))
    if m.pooled is not None:  # codes of pooled snapshots have no part in anything
        of_codes = torch.zeros_like(of_codes)
    largest = max(int(e.abs().max()) for e in (of_y, of_channel))
    if largest <= _PLAIN_EXPONENT and int(of_codes.abs().max()) <= 1:  # of modulus near one
        return m, None

    def scaled(values: Tensor, exponent: Tensor) -> Tensor:
        each = exponent.repeat_interleave(bands)[:, None, None, None]
        return torch.view_as_complex(torch.ldexp(torch.view_as_real(values.contiguous()), -each))

    noise = m.noise_power
    if noise is not None:
        noise = torch.ldexp(noise.double(), -2 * (of_y if noise.ndim == 1 else of_y[:, None]))
    arrays = (scaled(m.y, of_y), scaled(m.codes, of_codes), scaled(m.channel, of_channel))
    return Measurement(*arrays, noise, m.pooled), (of_y, of_y - of_codes - of_channel)


def _in_units(result: Localisation, of_y: Tensor, of_field: Tensor) -> Localisation:
    """A localisation of what :func:`_plain` made, in the units of the data; a factor may need double precision."""

    def powers(found: list[Sources]) -> list[Sources]:
        pairs = zip(found, of_field, strict=True)
        return [
            s.replace(power=torch.ldexp(s.power.double(), 2 * exponent.to(s.power.device))) for s, exponent in pairs
        ]

    def scaled(values: Tensor, exponent: Tensor) -> Tensor:
        return torch.ldexp(values, exponent.to(values.device).view(-1, *(1,) * (values.ndim - 1)))

    factor, noise = result.factor, result.noise_power
    if int(of_field.abs().max()) > _SINGLE_EXPONENT:
        factor = factor.to(torch.complex128)
    return result._replace(
        sources=powers(result.sources),
        noise_power=None if noise is None else scaled(noise.double(), 2 * of_y),
        factor=torch.view_as_complex(scaled(torch.view_as_real(factor.resolve_conj().contiguous()), of_field)),
        copies=None if result.copies is None else powers(result.copies),
    )


def _with_gains(measurement: Measurement, given: SensorArray | Setup | None, own: Setup) -> Measurement:
    """The measurement with the gains of the data's setup, or else of the model's, whose elements have another order."""
    gains = getattr(given, "gains", None)
    if gains is None and own.gains is None:
        return measurement
    values = torch.tensor(gains or own.gains, dtype=torch.complex128)
    order = None if gains else _fitted(given, own).order
    return measurement.with_gains(values if order is None else values[order.argsort()])


def _is_direct(measurement: Measurement) -> bool:
    """Whether the snapshots are of the elements themselves: codes of ones and an identity for a channel."""
    channel = measurement.channel
    if channel.shape[-2] != channel.shape[-1] or not bool((measurement.codes == 1).all()):
        return False
    return bool((channel == torch.eye(channel.shape[-1], dtype=channel.dtype, device=channel.device)).all())


def _of_recording(
    recording: Recording, codes: Any, channel: Any, snapshots: Any, own: Setup
) -> tuple[Any, Any, Any, SensorArray | Setup, Any]:
    """The measurement in a recording, its array, and how many snapshots a covariance is the mean of."""
    if codes is not None or channel is not None:
        raise ValueError("a recording brings its own codes and channel: give it alone")
    array: SensorArray | Setup = recording.array
    if recording.given is not None:
        array = recording.setup
    elif recording.n_bands > 1:
        array = recording.setup if own is None else own.replace(array=array, wavelengths_m=recording.wavelengths_m)
    if recording.snapshots is None:
        effective = recording.effective_snapshots
        if snapshots is not None:
            return recording.covariance, None, None, array, snapshots
        if effective is not None:
            counts = [max(int(value) if value.is_integer() else value, 1) for value in effective]
            return recording.covariance, None, None, array, counts
        raise ValueError(
            "this recording holds a covariance and not how many snapshots it is the mean of: give snapshots=, or take "
            "risfast.detect_sources, which needs no number (on the command line, `risfast detect FILE`)"
        )
    y, codes, channel = recording.scene_batch()
    if not y.is_complex():
        raise TypeError(
            f"{recording.provenance.path}: the snapshots are real samples in time; a narrow band of them is needed: "
            "read the file with frequency_hz="
        )
    return y, codes, channel, array, snapshots


def _counts(n_sources: Any, scenes: int) -> Tensor | None:
    if n_sources is None:
        return None
    counts = torch.as_tensor(n_sources)
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool or bool((counts < 0).any()):
        raise ValueError(f"n_sources must hold whole numbers of at least 0, got {n_sources!r}")
    if counts.ndim == 0:
        return counts.expand(scenes).long()
    if counts.shape != (scenes,):
        raise ShapeError(f"n_sources must be one number or have shape ({scenes},), got {tuple(counts.shape)}")
    return counts.long()


def _limits(setup: Setup, counts: Tensor | None) -> tuple[str, ...]:
    """What an array that is sampled directly cannot tell apart, and more sources than it can."""
    if setup.sampling != "direct":
        return ()
    said, most = setup.ambiguities, most_sources(setup.array)
    asked = 0 if counts is None or not len(counts) else int(counts.max())
    if asked > most:
        said = (*said, f"{asked} sources were asked for, and this array can tell {most} apart at the most")
    axes = SteeredAtoms.axes_of(setup)
    steps = zip(axes.spacing, setup.extents_m, axes.shape, strict=False)  # of the angles
    beams = max((abs(step) * extent / setup.array.wavelength_m for step, extent, n in steps if n > 1), default=0.0)
    if beams > 1:
        said = (*said, f"the region is searched in steps of {beams:.1f} beam widths, which may miss sources: narrow it")
    return said


class _Fit(NamedTuple):
    """How data of one array are those of another: an order of elements, and a unit of length."""

    order: Tensor | None  # of the data's elements, as the model has them
    scale: float  # the data's metres in one of the model's
    array: SensorArray | None  # of the data
    notes: tuple[str, ...]
    gains: tuple[complex, ...] | None = None  # of the data

    def ordered(self, measurement: Measurement) -> Measurement:
        """As the model has it."""
        if self.order is None:
            return measurement
        order = self.order.to(measurement.y.device)
        return replace(measurement, codes=measurement.codes[..., order], channel=measurement.channel[..., order])

    def restored(self, result: Localisation, setup: Setup) -> Localisation:
        """As the data have it: lengths in their metres, elements in their order."""
        if self.array is None:
            return result
        unit = torch.tensor([1.0, 1.0, self.scale], dtype=torch.float64)
        covariance = result.position_covariance
        factor = result.factor
        if self.order is not None:
            back = torch.empty_like(self.order)
            back[self.order] = torch.arange(len(self.order))
            factor = factor[..., back.to(factor.device), :]
        if covariance is not None:
            covariance = [c * unit[:, None] * unit for c in covariance]
        gains = self.gains
        if gains is None and setup.gains is not None:  # those of the model, in the order of the data
            places = range(len(setup.gains)) if self.order is None else back.tolist()
            gains = tuple(setup.gains[place] for place in places)
        return result._replace(
            sources=[s.replace(range=s.range * self.scale) for s in result.sources],
            position_covariance=covariance,
            factor=factor,
            notes=(*self.notes, *result.notes),
            copies=None if result.copies is None else [s.replace(range=s.range * self.scale) for s in result.copies],
            setup=setup.scaled(self.scale).replace(array=self.array, gains=gains),
        )


def _fitted(given: SensorArray | Setup | None, own: Setup) -> _Fit:
    """How data of an array, or of a setup, can be the model's; refused where they cannot."""
    if given is None:
        return _Fit(None, 1.0, None, ())
    array = given.array if isinstance(given, Setup) else given
    if isinstance(given, Setup) and given.wavefront != own.wavefront:
        raise ValueError(f"the data's wavefront is {given.wavefront}, the model's {own.wavefront}; {_MEND}")
    if array.n_elements != own.array.n_elements:
        raise ValueError(
            f"the data are of an array of {array.n_elements} elements, the model is of {own.array.n_elements}; {_MEND}"
        )
    scale = array.wavelength_m / own.array.wavelength_m
    bands = given.wavelengths_m if isinstance(given, Setup) else own.scaled(scale).wavelengths_m
    if len(bands) != own.n_bands or any(
        abs(one / (scale * other) - 1) > _SAME_BAND for one, other in zip(bands, own.wavelengths_m, strict=True)
    ):
        raise ValueError(
            f"the data are of other bands than the model: {len(bands)} wavelengths of {min(bands):.5g} .. "
            f"{max(bands):.5g} m, in its unit {own.n_bands} of {min(own.wavelengths_m) * scale:.5g} .. "
            f"{max(own.wavelengths_m) * scale:.5g} m, one by one in the same order; {_MEND}"
        )
    theirs, ours = array.positions_m / array.wavelength_m, own.array.positions_m / own.array.wavelength_m
    distance = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    order = distance.indices
    if float(distance.values.max()) > _SAME_PLACE or order.unique().numel() != len(order):
        raise ValueError(
            f"the data are of another array than the model: in wavelengths, elements stand up to "
            f"{float(distance.values.max()):.3g} from those of the model, or several at one of its; {_MEND}"
        )
    notes = []
    if abs(scale - 1) > 1e-12:
        notes.append(
            f"rescaled: the array is the model's in wavelengths, so lengths were taken times {scale:.6g}; the region "
            f"is {own.region.range_m[0] * scale:.4g} .. {own.region.range_m[1] * scale:.4g} m and the tolerance of a "
            f"hit in range {own.tolerance.range_m * scale:.4g} m"
        )
    same = bool((order == torch.arange(len(order))).all())
    if not same:
        moved = int((order != torch.arange(len(order))).sum())
        notes.append(f"reordered: {moved} elements of the data stand in another order than the model's")
    if isinstance(given, Setup):
        model = own.scaled(scale)
        if given.region != model.region:
            notes.append(f"the region of the model is searched, {model.region}, not the data's, {given.region}")
        if given.tolerance != model.tolerance:
            notes.append(f"a hit is within the tolerance of the model, {model.tolerance}, not {given.tolerance}")
    gains = given.gains if isinstance(given, Setup) else None
    return _Fit(None if same else order, scale, array, tuple(notes), gains)
