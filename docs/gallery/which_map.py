"""Bartlett, Capon or MUSIC: which map?

Three maps of one covariance on one scale of colours. Bartlett is robust and broad, and a strong source hides weak ones.
Capon is sharper, but a source between the points of the grid looks weaker than it is. MUSIC is as sharp, its heights
are no powers, and it needs the number of sources.
"""

# %%
# Three sources of different power before 100 elements.
import torch

from risfast import Region, SensorArray, Setup, datasets
from risfast.ops import bartlett_spectrum, music_spectrum, mvdr_spectrum
from risfast.report.plots import SpectrumPanel, spectrum_figure
from risfast.steering import steering_vectors

array = SensorArray.rectangular(10, 10, spacing_m=0.05, wavelength_m=0.1)
setup = Setup(array, Region((-0.9, 0.9), (-0.45, 0.45), (0.3, 3.0)), sampling="direct")
grid = setup.search_grid(8.0)
true = torch.tensor([[0.5, 0.1, 0.9], [0.3, 0.15, 1.2], [-0.4, -0.2, 0.7]], dtype=torch.float64)
steering = steering_vectors(array, *true.T) * torch.tensor([1.0, 0.7, 0.3])[:, None]
snapshots = torch.from_numpy(datasets.gaussian_snapshots(steering, 200, snr_db=10.0))
covariance = snapshots.mT @ snapshots.conj() / len(snapshots)

# %%
maps = {
    "Bartlett": bartlett_spectrum(covariance, array, grid).power,
    "Capon": mvdr_spectrum(covariance, array, grid).power,
    "MUSIC, told that there are three": music_spectrum(covariance, array, grid, n_sources=3).power,
}
for name, power in maps.items():
    wide = (power > power.max() / 2).double().mean()
    print(f"{name}: {100 * float(wide):.2f} % of the map is within 3 dB of its maximum")
panels = [SpectrumPanel(name, power, true[:0]) for name, power in maps.items()]
figure = spectrum_figure(panels, grid.azimuth_rad, grid.elevation_rad, true)
figure.savefig("which_map.png", dpi=65)
