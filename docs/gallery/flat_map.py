"""Why is my map flat?

Four maps of the same two sources: one is right, three have a mistake that is easily made. All are on one scale.
"""

# %%
# Two sources before 64 elements, 100 snapshots, 20 dB.
import torch

from risfast import Region, SensorArray, Setup, datasets
from risfast.ops import mvdr_spectrum
from risfast.report.plots import SpectrumPanel, spectrum_figure
from risfast.steering import steering_vectors

array = SensorArray.rectangular(8, 8, spacing_m=0.05, wavelength_m=0.1)
setup = Setup(array, Region((-1.0, 1.0), (-0.5, 0.5), (0.3, 5.0)), sampling="direct")
grid = setup.search_grid(6.0)
true = torch.tensor([[0.5, 0.2, 1.0], [-0.3, -0.1, 1.5]], dtype=torch.float64)
snapshots = torch.from_numpy(datasets.gaussian_snapshots(steering_vectors(array, *true.T), 100, snr_db=20.0))
covariance = snapshots.mT @ snapshots.conj() / len(snapshots)

# %%
# A phase of the other sign mirrors every source and curves the wave the wrong way; positions in the wrong order
# and far too much diagonal loading leave hardly a peak.
order = torch.randperm(array.n_elements, generator=torch.Generator().manual_seed(0))
tried = {
    "right": (covariance, 1e-2),
    "conjugated: the data have the other sign of phase": (covariance.conj(), 1e-2),
    "channels in another order than the positions": (covariance[order][:, order], 1e-2),
    "diagonal loading 10 in place of 0.01": (covariance, 10.0),
}
panels = []
for title, (matrix, loading) in tried.items():
    power = mvdr_spectrum(matrix, array, grid, loading=loading).power
    contrast_db = 10 * float((power.max() / power.median()).log10())
    print(f"{title}: the peak is {contrast_db:.0f} dB above the median of the map")
    panels.append(SpectrumPanel(title, power, true[:0]))
figure = spectrum_figure(panels, grid.azimuth_rad, grid.elevation_rad, true)
figure.savefig("flat_map.png", dpi=65)
