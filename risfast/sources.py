"""The sources found in one scene."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import spherical_to_cartesian

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from risfast.setup import Setup


class Source(NamedTuple):
    """One source, in plain numbers.

    Attributes
    ----------
    azimuth, elevation, range, power, confidence, prominence_db : float
    at_edge : bool
        As the tensors of :class:`Sources` hold them.
    """

    azimuth: float
    elevation: float
    range: float
    power: float
    confidence: float
    prominence_db: float
    at_edge: bool


_DEFAULT: Any = None  # filled in when the object is made


@dataclass(frozen=True, eq=False)
class Sources:
    """The sources found in one scene, strongest first.

    Indexing with a number gives a :class:`Source`, with a slice, a list or a mask gives ``Sources``; iterating gives
    one ``Source`` after the other.

    Attributes
    ----------
    azimuth, elevation : float64 tensors, shape (K,)
        Radians.
    range : float64 tensor, shape (K,)
        Metres; NaN where the data do not determine it, infinite in the far field.
    power : float64 tensor, shape (K,)
        Capon power, linear, unless the method that found them says otherwise.
    confidence : float64 tensor, shape (K,)
        Probability that the source lies within the tolerance of a true one; NaN where the method says nothing of it.
    prominence_db : float64 tensor, shape (K,)
        Of a peak of a map: its power over the median of the map, in dB; NaN of anything else.
    at_edge : bool tensor, shape (K,)
        Whether the source ends on the edge of the region that is searched: it may well lie beyond.

    Raises
    ------
    ShapeError
        The tensors are not of one shape.
    """

    azimuth: Tensor
    elevation: Tensor
    range: Tensor
    power: Tensor
    confidence: Tensor
    prominence_db: Tensor = _DEFAULT
    at_edge: Tensor = _DEFAULT

    def __post_init__(self) -> None:
        """Fill in what was not given."""
        if self.prominence_db is _DEFAULT:
            object.__setattr__(self, "prominence_db", torch.full_like(self.azimuth, math.nan))
        if self.at_edge is _DEFAULT:
            object.__setattr__(self, "at_edge", torch.zeros_like(self.azimuth, dtype=torch.bool))
        for item in fields(self):
            if self.azimuth.ndim != 1 or getattr(self, item.name).shape != self.azimuth.shape:
                raise ShapeError(
                    f"{item.name} must have shape ({self.azimuth.numel()},), one for each source, got "
                    f"{tuple(getattr(self, item.name).shape)}"
                )

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Sources:
        """No source at all.

        Parameters
        ----------
        device : torch.device or str
            Of the tensors.

        Returns
        -------
        Sources
            Of length 0.
        """
        none = torch.zeros(0, dtype=torch.float64, device=device)
        return cls(none, none, none, none, none)

    @classmethod
    def at(cls, position: Tensor, power: Tensor, confidence: Tensor | None = None) -> Sources:
        """Sources at given places.

        Parameters
        ----------
        position : float64 tensor, shape (K, 3)
            Azimuth and elevation in radians, range in metres.
        power : float64 tensor, shape (K,)
        confidence : float64 tensor, shape (K,), optional
            NaN where it is not given.

        Returns
        -------
        Sources
            In the order given.
        """
        azimuth, elevation, r = position.unbind(-1)
        return cls(azimuth, elevation, r, power, torch.full_like(power, math.nan) if confidence is None else confidence)

    @classmethod
    def stack(cls, parts: Sequence[Sources]) -> Sources:
        """All sources of several sets as one.

        Parameters
        ----------
        parts : sequence of Sources

        Returns
        -------
        Sources
            In their order.
        """
        if not parts:
            return cls.empty()
        return cls(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(cls)))

    def replace(self, **changes: Any) -> Sources:
        """The same with some fields changed.

        Parameters
        ----------
        **changes
            Tensors of shape (K,), by the name of their field.

        Returns
        -------
        Sources
        """
        return replace(self, **changes)

    def __len__(self) -> int:
        """K."""
        return int(self.azimuth.numel())

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Sources: ...
    def __getitem__(self, index: Any) -> Any:
        """One as a :class:`Source`, or some of them."""
        if isinstance(index, Integral) or (isinstance(index, Tensor) and index.ndim == 0):
            return Source(*(getattr(self, item.name)[index].item() for item in fields(self)))
        if isinstance(index, list | tuple):  # torch takes an empty one for real numbers
            index = torch.as_tensor(index) if index else slice(0)
        return Sources(*(getattr(self, item.name)[index] for item in fields(self)))

    def __iter__(self) -> Iterator[Source]:
        """One after the other."""
        return (self[i] for i in range(len(self)))

    @property
    def position(self) -> Tensor:
        """(K, 3): azimuth, elevation, range."""
        return torch.stack([self.azimuth, self.elevation, self.range], -1)

    @property
    def xyz_m(self) -> Tensor:
        """(K, 3): x, y and z in metres; NaN where the range is not determined."""
        return spherical_to_cartesian(self.position)

    def to_dataframe(self, library: Literal["pandas", "polars"] | None = None) -> Any:
        """One row a source, in degrees, metres and dB.

        Parameters
        ----------
        library : {"pandas", "polars"}, optional
            By default pandas, or polars where only that is installed.

        Returns
        -------
        pandas.DataFrame or polars.DataFrame
            Columns azimuth_deg, elevation_deg, range_m, x_m, y_m, z_m, power_db, confidence, prominence_db, at_edge.

        Raises
        ------
        ValueError
            Another library.
        ImportError
            The library, or where none is named both, are not installed.
        """
        if library not in (None, "pandas", "polars"):
            raise ValueError(f"library must be pandas or polars, got {library!r}")
        names = ("pandas", "polars") if library is None else (library,)
        installed = [name for name in names if importlib.util.find_spec(name) is not None]
        if not installed:
            raise ImportError(f"to_dataframe needs {' or '.join(names)}: pip install {names[0]}")
        from risfast.io.export import COLUMNS, source_rows  # noqa: PLC0415 - of what stands above, as drawing is

        rows = source_rows([self])
        columns: dict[str, Any] = {
            name: np.array([row[name] for row in rows], kind)
            for name, kind in COLUMNS.items()
            if name not in ("scene", "source")
        }
        return importlib.import_module(installed[0]).DataFrame(columns)

    def plot(self, setup: Setup | None = None) -> Figure:
        """The sources over azimuth and elevation, and seen from above.

        Parameters
        ----------
        setup : Setup, optional
            Draws the elements too, and the directions of its whole region.

        Returns
        -------
        matplotlib.figure.Figure
            ``savefig`` writes it; a notebook shows it.
        """
        from risfast.report.views import sources_figure  # noqa: PLC0415 - matplotlib

        return sources_figure(self, setup)

    def __repr__(self) -> str:
        """A line a source, in degrees, metres and dB."""
        lines = [f"Sources({len(self)})"]
        for s in self:
            where = "range not determined" if math.isnan(s.range) else f"{s.range:.4g} m"
            text = f"  {math.degrees(s.azimuth):.2f} deg, {math.degrees(s.elevation):.2f} deg, {where}"
            text += f", {10 * math.log10(max(s.power, 1e-300)):.1f} dB"
            if not math.isnan(s.confidence):
                text += f", confidence {s.confidence:.2f}"
            if not math.isnan(s.prominence_db):
                text += f", prominence {s.prominence_db:.1f} dB"
            lines.append(text + (", at the edge of the region" if s.at_edge else ""))
        return "\n".join(lines)
