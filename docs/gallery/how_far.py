"""How far can range be seen?

Range is seen by the curvature of the wave over the array, and curvature falls with the square of the distance. The
Cramér-Rao bound, the least standard deviation of any unbiased estimator, says how far it reaches.
"""

# %%
# One source straight ahead of arrays of three sizes, 50 snapshots at 0 dB.
import math

import torch

from risfast import Region, SensorArray, Setup
from risfast.covariance import covariance_from_factor
from risfast.localize import Localizer
from risfast.report.plots import COLOURS, new_figure, range_ticks
from risfast.steering import steering_vectors

WAVELENGTH_M, NOISE, SNAPSHOTS = 0.1, 1.0, 50
ranges = torch.logspace(-0.3, 1.6, 16, dtype=torch.float64)


def deviation_m(apertures: float) -> list[float]:
    """Standard deviation of range at the estimate, for the exact covariance of a source at each range."""
    array = SensorArray.rectangular(8, 8, spacing_m=apertures / 7, wavelength_m=WAVELENGTH_M)
    setup = Setup(array, Region((-0.3, 0.3), (-0.3, 0.3), (0.3, 60.0)), sampling="direct")
    place = torch.zeros_like(ranges)
    a = steering_vectors(array, place, place, ranges)
    exact = covariance_from_factor(a[:, :, None]) + NOISE * torch.eye(array.n_elements)
    found = Localizer.classical(setup).analyse(exact, snapshots=SNAPSHOTS, n_sources=1)
    return [float(spread[0, 2, 2].sqrt()) for spread in found.position_covariance]


# %%
# An array twice as large sees range about four times as far with the same relative error, as curvature grows with the
# square of the aperture.
figure = new_figure(7.0, 4.2)
axes = figure.subplots()
for colour, aperture in zip(COLOURS, (0.25, 0.5, 1.0), strict=False):
    values = deviation_m(aperture)
    axes.plot(ranges, values, "o-", color=colour, label=f"{aperture:g} m across")
    reach = max((r for r, value in zip(ranges.tolist(), values, strict=True) if value < 0.1 * r), default=math.nan)
    print(f"{aperture:g} m across: range to a tenth of itself out to about {reach:.1f} m")
axes.plot(ranges, 0.1 * ranges, ":", color="#666666", label="a tenth of the range")
axes.set(xscale="log", yscale="log", xlabel="range (m)", ylabel="standard deviation of range (m)")
range_ticks(axes.xaxis, 0.5, 40.0)
axes.legend(frameon=False)
axes.grid(color="#dddddd", linewidth=0.6)
figure.savefig("how_far.png", dpi=80)
