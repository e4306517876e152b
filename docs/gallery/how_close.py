"""How close together can two sources be?

A delay-and-sum map (Bartlett) cannot separate what is closer than a beam width, wavelength over aperture. Capon
sharpens the map, and the likelihood goes further.
"""

# %%
# Two sources at the same range, closer and closer; 200 snapshots at 10 dB before a line of 16 elements.
import math

import torch

from risfast import Localizer, Region, SensorArray, Setup, datasets
from risfast.ops import bartlett_spectrum, mvdr_spectrum
from risfast.report.plots import COLOURS, new_figure
from risfast.steering import steering_vectors

array = SensorArray.linear(16, 0.05, 0.1)
setup = Setup(array, Region((-0.6, 0.6), (0.0, 0.0), (1.0, 3.0)), sampling="direct")
grid = setup.search_grid()
beam_deg = math.degrees(array.wavelength_m / array.aperture_m)
localizer = Localizer.classical(setup)
separations = (10.0, 6.0, 4.0, 2.0, 1.0)
counts = {"Bartlett map": [], "Capon map": [], "likelihood": []}
curves = {}
for separation in separations:
    half = math.radians(separation / 2)
    place = torch.tensor([[-half, 0.0, 2.0], [half, 0.0, 2.0]], dtype=torch.float64)
    snapshots = torch.from_numpy(datasets.gaussian_snapshots(steering_vectors(array, *place.T), 200, snr_db=10.0))
    covariance = snapshots.mT @ snapshots.conj() / len(snapshots)
    for name, spectrum in (("Bartlett map", bartlett_spectrum), ("Capon map", mvdr_spectrum)):
        power = spectrum(covariance, array, grid).power[:, 0]
        peaks = (power[1:-1] > power[:-2]) & (power[1:-1] >= power[2:]) & (power[1:-1] > 0.3 * power.max())
        counts[name].append(int(peaks.sum()))
        curves[name, separation] = 10 * (power / power.max()).log10()
    counts["likelihood"].append(len(localizer.localize(snapshots)[0]))
print(f"one beam width is {beam_deg:.1f} degrees")
for name, values in counts.items():
    print(f"{name}: {', '.join(f'{v} at {s:g} deg' for v, s in zip(values, separations, strict=True))}")

# %%
figure = new_figure(7.0, 3.8)
axes = figure.subplots()
for colour, style, name in zip(COLOURS, ("--", "-"), ("Bartlett map", "Capon map"), strict=False):
    axes.plot(grid.azimuth_rad.rad2deg(), curves[name, 4.0], style, color=colour, label=f"{name}, 4 degrees apart")
for side in (-2, 2):
    axes.axvline(side, color="#666666", linewidth=1, linestyle=":")
axes.set(xlim=(-15, 15), ylim=(-25, 1), xlabel="azimuth (deg)", ylabel="power re maximum (dB)")
axes.legend(frameon=False)
axes.grid(color="#dddddd", linewidth=0.6)
figure.savefig("how_close.png", dpi=80)
