"""The networks of a DCD-MUSIC checkout, on covariances of a uniform linear array: building, weights, read-out."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.peers.dcd_checkout import SPACING_WAVELENGTHS, Checkout, calm, system_model
from risfast.errors import FileFormatError, ShapeError
from risfast.io.durable import replace_file

__all__ = [
    "LINE_METHODS",
    "LineNetwork",
    "LineOptions",
    "Weights",
    "about_the_centre",
    "build_network",
    "read_weights",
    "snapshots_of",
    "write_weights",
]

LINE_METHODS = ("nf_subspacenet", "dcd_music")
MOST_SOURCES = 5  # their peaks stand at least 10 degrees apart on a grid of 120, so that 6 always fit
_FORMAT = "risfast-dcd-1"
_NO_FILE = "no weights are looked for"  # the checkout's own folder of weights is not searched
_SEED = 0


@dataclass(frozen=True)
class LineOptions:
    """What a network is built for; lengths in wavelengths, elements half a wavelength apart."""

    method: str = "nf_subspacenet"  # SubspaceNet with MUSIC over angle and range, or the cascade of angles and ranges
    n_elements: int = 12  # N of the line, >= 3
    n_snapshots: int = 64  # T that the network is fed, > N
    # Lags of the autocorrelation that it looks at, in 1 .. T - 1. Sources that are white in time have none but the
    # first
    lags: int = 1
    near: float = 0.5 / 0.3  # Ranges that MUSIC searches, 0 < near < far; used where ``centred``
    far: float = 10 / 0.3  # Ranges that MUSIC searches, 0 < near < far; used where ``centred``
    # Whether angle and range are those from the centre of the line. Weights from the checkout's own training are about
    # the first element, and search its own ranges
    centred: bool = True

    def __post_init__(self) -> None:
        """Check every value."""
        if self.method not in LINE_METHODS:
            raise ValueError(f"method must be one of {', '.join(LINE_METHODS)}; got {self.method!r}")
        if self.n_elements < 3 or self.n_snapshots <= self.n_elements:
            raise ValueError(
                f"n_elements must be at least 3 and n_snapshots above it, got {self.n_elements} and {self.n_snapshots}"
            )
        if not 1 <= self.lags < self.n_snapshots:
            raise ValueError(f"lags must lie in 1 .. {self.n_snapshots - 1}, got {self.lags}")
        if not 0 < self.near < self.far < math.inf:
            raise ValueError(f"near and far must satisfy 0 < near < far, got {self.near!r} and {self.far!r}")


class Weights(NamedTuple):
    """Trained weights."""

    options: LineOptions  # Of the network that they fit
    state: dict[str, Tensor]
    sha256: str  # Of the file


def build_network(checkout: Checkout, options: LineOptions) -> nn.Module:
    """A network of the checkout with fresh parameters, from the current random state."""
    o = options
    system = system_model(checkout, o.n_elements, o.n_snapshots, centred=o.centred)
    if o.method == "dcd_music":
        network = checkout.classes["DCDMUSIC"](tau=o.lags, system_model=system, state_path=_NO_FILE)
    else:
        network = checkout.classes["SubspaceNet"](
            tau=o.lags, diff_method="music_2D", system_model=system, field_type="Near"
        )
    if o.centred:
        music = network.diff_method
        step = float((music.distances[1] - music.distances[0]).detach())
        music.distances = torch.arange(o.near, o.far + step, step, dtype=torch.float64)
        if o.method == "nf_subspacenet":  # the cascade makes its grid along each angle that it finds
            music.set_search_grid()
    return network


def snapshots_of(covariance: Tensor, n_snapshots: int) -> Tensor:
    """Snapshots of zero mean whose sample covariance is a given one.

    covariance (B, N, N) -> (B, N, T)
    """
    n = covariance.shape[-1]
    if n_snapshots <= n:
        raise ShapeError(f"n_snapshots must be above N = {n}, got {n_snapshots}")
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randn(n_snapshots, n, dtype=torch.complex128, generator=generator)
    columns = torch.cat([torch.ones(n_snapshots, 1, dtype=torch.complex128), drawn], 1)
    rows = torch.linalg.qr(columns).Q[:, 1:].mT * math.sqrt(n_snapshots - 1)
    value, vector = torch.linalg.eigh(covariance.detach().cpu().to(torch.complex128))
    root = vector * value.clamp_min(0).sqrt()[..., None, :]
    return root @ rows


def about_the_centre(angle: Tensor, distance: Tensor, n_elements: int) -> tuple[Tensor, Tensor]:
    """Angle and range from the centre of a line, given those from its first element."""
    along = distance.double() * angle.double().sin() - (n_elements - 1) / 2 * SPACING_WAVELENGTHS
    across = distance.double() * angle.double().cos()
    return torch.atan2(along, across), torch.hypot(along, across)


class LineNetwork:
    """A trained network of the checkout, from covariances of a line to angles and ranges."""

    def __init__(self, checkout: Checkout, weights: Weights) -> None:
        self.options = weights.options
        with calm():
            self.network = build_network(checkout, weights.options)
            try:
                self.network.load_state_dict(weights.state)
            except RuntimeError as error:
                raise FileFormatError(f"the weights do not fit {weights.options.method}: {error}") from error
        self.network.eval()

    def counts(self, covariance: Tensor) -> Tensor:
        """How many sources the network sees: eigenvalues of its surrogate covariance above its learned threshold.

        covariance (B, N, N) -> (B,)
        """
        return self._run(covariance, 1)[2].long().clamp(1, MOST_SOURCES)

    def locate(self, covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Angles and ranges of as many sources.

        covariance (B, N, N) -> angle, distance (B, count)
        """
        if not 1 <= count <= MOST_SOURCES:
            raise ValueError(f"n_sources must lie in 1 .. {MOST_SOURCES}, got {count}")
        angle, distance, _ = self._run(covariance, count)
        angle, distance = angle.double().reshape(-1, count), distance.double().reshape(-1, count)
        if not self.options.centred:
            return about_the_centre(angle, distance, self.options.n_elements)
        return angle, distance

    def _run(self, covariance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Their angles, ranges and numbers of sources."""
        n = self.options.n_elements
        if covariance.ndim != 3 or tuple(covariance.shape[1:]) != (n, n):
            raise ShapeError(f"covariance must have shape (B, {n}, {n}), got {tuple(covariance.shape)}")
        power = covariance.diagonal(dim1=1, dim2=2).real.mean(1)
        unit = covariance.conj() / power.clamp_min(torch.finfo(power.dtype).tiny)[:, None, None]
        with calm(), torch.no_grad():
            answer = self.network(snapshots_of(unit, self.options.n_snapshots), count)
        return answer[0].detach(), answer[1].detach(), answer[2].detach()


def write_weights(path: Path, network: nn.Module, options: LineOptions, made_by: dict[str, Any]) -> None:
    """Write weights with what rebuilds their network, as safetensors."""
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    metadata = {"format": _FORMAT, "options": json.dumps(asdict(options)), "made_by": json.dumps(made_by)}
    replace_file(path, save(state, metadata=metadata))


def read_weights(path: Path) -> Weights:
    """Read weights that :func:`write_weights` wrote, or a state that the checkout's own training saved with torch."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix == ".safetensors":
        return _own_weights(path, digest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of a pickle that is then refused
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise FileFormatError(f"{path}: not a state of tensors as torch saves it: {error}") from error
    named = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    if not named or "conv1.weight" not in state:
        raise FileFormatError(f"{path}: not the state of a SubspaceNet or a DCDMUSIC")
    cascade = any(name.startswith("angle_extractor.") for name in state)
    lags = int(state["conv1.weight"].shape[1])
    options = LineOptions(
        "dcd_music" if cascade else "nf_subspacenet", n_snapshots=max(64, lags + 1), lags=lags, centred=False
    )
    return Weights(options, state, digest)


def _own_weights(path: Path, digest: str) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except SafetensorError as error:
        raise FileFormatError(f"{path}: damaged, or no safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise FileFormatError(f"{path}: not weights of a linear array in the format {_FORMAT}")
    try:
        options = LineOptions(**json.loads(metadata["options"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: its options cannot be read: {error}") from error
    return Weights(options, state, digest)
