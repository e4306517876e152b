"""DCD-MUSIC and NF-SubspaceNet on a surface: networks of a checkout along its central row and column."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.peers.dcd_checkout import CLONE, load_checkout
from bench.peers.dcd_networks import MOST_SOURCES, LineNetwork, read_weights
from bench.peers.line_cuts import LineSources, central_cuts, paired_sources, square_lattice
from risfast.baselines.base import Baseline, by_count, reported
from risfast.baselines.fits import Sbl
from risfast.covariance import als_covariance, covariance_from_factor, ls_covariance
from risfast.models.base import Measurement
from risfast.setup import Setup
from risfast.sources import Sources

__all__ = ["COVARIANCES", "PEERS", "CheckoutOptions", "DcdMusic", "LineBaseline", "NfSubspaceNet"]

COVARIANCES = ("sbl", "als", "ls")


@dataclass(frozen=True)
class CheckoutOptions:
    """Options of the methods that run code of a checkout.

    Attributes
    ----------
    checkout : Path or None
        Folder of the checkout; its code is run. There is no default.
    weights : Path or None
        Trained weights; see :func:`bench.peers.dcd_networks.read_weights`. There is no default.
    covariance : {"sbl", "als", "ls"}
        How the covariance of the surface is estimated: by the sparse fit of :class:`risfast.baselines.fits.Sbl`, by
        alternating least squares of rank 5, or by ridge least squares.

    Raises
    ------
    ValueError
        An unknown covariance.
    """

    checkout: Path | None = None
    weights: Path | None = None
    covariance: str = "sbl"

    def __post_init__(self) -> None:
        """Check the covariance."""
        if self.covariance not in COVARIANCES:
            raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}; got {self.covariance!r}")


class LineBaseline(Baseline):
    """A network of a checkout on the central cuts of an estimated covariance; the subclasses say which.

    Parameters
    ----------
    setup : Setup
        Of a square lattice at half a wavelength, with as many elements along a side as the weights are for.
    options : CheckoutOptions
        With checkout and weights.

    Raises
    ------
    FileFormatError, RuntimeError, ValueError
        Checkout or weights are missing or not what they should be, or the array is another.
    """

    Options = CheckoutOptions
    method = ""

    def __init__(self, setup: Setup, options: CheckoutOptions | None = None) -> None:
        super().__init__(setup, options)
        o = self.options
        if o.checkout is None:
            raise ValueError(f"{self.method} runs code that does not come with risfast: `{CLONE}` and name the folder")
        if o.weights is None:
            raise ValueError(
                f"{self.method} needs trained weights: python -m bench.peers.dcd_train --checkout {o.checkout} "
                f"--method {self.method} --out {self.method}.safetensors"
            )
        weights = read_weights(o.weights)
        if weights.options.method != self.method:
            raise ValueError(f"{o.weights} holds weights of {weights.options.method}, not of {self.method}")
        self._lattice = square_lattice(setup.array, weights.options.n_elements)
        self._network = LineNetwork(load_checkout(o.checkout), weights)
        self._sbl = Sbl(setup) if o.covariance == "sbl" else None
        line = weights.options
        self._range_m = (line.near * setup.array.wavelength_m, line.far * setup.array.wavelength_m)

    def find(self, measurement: Measurement, n_sources: Tensor | None) -> list[Sources]:
        """At most 5 sources a scene; without a count as many as the network sees in row or column, if more there."""
        if n_sources is not None and int(n_sources.max()) > MOST_SOURCES:
            raise ValueError(f"n_sources must be at most {MOST_SOURCES}, got {int(n_sources.max())}")
        covariance = self._covariance(measurement)
        cuts = central_cuts(covariance, self._lattice)
        counts = n_sources
        if counts is None:
            counts = torch.maximum(*(self._network.counts(cut) for cut in cuts))
        return by_count(counts.cpu(), lambda scenes, count: self._found(covariance, cuts, scenes, count))

    def _covariance(self, measurement: Measurement) -> Tensor:
        if self._sbl is not None:
            return self._sbl.fit(measurement).covariance()
        given = (measurement.y, measurement.codes, measurement.channel)
        if self.options.covariance == "als":
            return covariance_from_factor(als_covariance(*given, MOST_SOURCES, noise_power=measurement.noise_power))
        return ls_covariance(*given, noise_power=measurement.noise_power)

    def _found(self, covariance: Tensor, cuts: tuple[Tensor, Tensor], scenes: Tensor, count: int) -> list[Sources]:
        """The sources of some scenes, all of one number."""
        at = scenes.to(covariance.device)
        lines = []
        for cut in cuts:
            angle, distance = self._network.locate(cut[at], count)
            lines.append((angle, distance * self.setup.array.wavelength_m))
        (angle_h, range_h), (angle_v, range_v) = lines
        found = [
            paired_sources(
                covariance[scene],
                self.setup.array,
                LineSources(angle_h[i], range_h[i]),
                LineSources(angle_v[i], range_v[i]),
                self._range_m,
            )
            for i, scene in enumerate(at.tolist())
        ]
        return reported(found, self.setup)


class NfSubspaceNet(LineBaseline):
    """SubspaceNet with near-field MUSIC over angle and range, along the central row and column of a surface.

    Made and run as :class:`LineBaseline` says.

    Notes
    -----
    The network is that of the checkout; see :func:`bench.peers.dcd_checkout.load_checkout` for its publications.
    It was made for the snapshots of a linear array. Here it gets the covariance of a row (and of a column) of the
    surface, which is estimated first, as snapshots that have it for their sample covariance; how angles are paired and
    ranges joined is told at :func:`bench.peers.line_cuts.paired_sources`.
    """

    method = "nf_subspacenet"


class DcdMusic(LineBaseline):
    """DCD-MUSIC: angles of a first network, then the range along each of them with a second.

    Made and run as :class:`LineBaseline` says; the rest is told at :class:`NfSubspaceNet`.
    """

    method = "dcd_music"


PEERS: dict[str, type[LineBaseline]] = {kind.method: kind for kind in (NfSubspaceNet, DcdMusic)}
"""By name; what a file of weights calls its method."""
