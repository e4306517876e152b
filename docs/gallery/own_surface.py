"""How do I train for my own surface?

The shipped model is for one surface. For another, a backbone is trained on simulated scenes of it. This is the
smallest such training: forty steps, which show that the error falls. `risfast backbone --system.array setup.toml`
is the real one.
"""

# %%
# A surface of 4 x 4 elements behind which 8 antennas listen, and a small backbone for it.
import torch

from risfast import Region, SensorArray, Setup
from risfast.losses import factor_nmse
from risfast.models import Measurement, build_backbone
from risfast.report.plots import COLOURS, new_figure
from risfast.simulate import SystemConfig, generate_scenes

torch.manual_seed(0)
array = SensorArray.rectangular(4, 4)
setup = Setup(array, Region((-1.0, 1.0), (-0.5, 0.5), (0.5, 4.0)))
axes_of_atoms = {"n_azimuth": 9, "n_elevation": 5, "n_range": 3, "azimuth_rad": 1.0, "elevation_rad": 0.5}
backbone = build_backbone("unrolled", setup, {"steps": 2, "axes": {**axes_of_atoms, "range_m": [0.5, 4.0]}})
system = SystemConfig(array=array, n_antennas=8, n_snapshots=16, range_m=(0.5, 4.0), n_sources=(1, 2))

# %%
# Fresh scenes in every step, so that nothing can be learned by heart.
optimiser = torch.optim.Adam(backbone.parameters(), lr=3e-3)
history = []
for step in range(40):
    scenes = generate_scenes(system, seed=1, indices=range(32 * step, 32 * step + 32))
    estimate = backbone(Measurement.of(scenes))
    loss = factor_nmse(estimate.factor, scenes.true_factor().to(estimate.factor.dtype)).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    history.append(float(loss.detach()))
first, last = (sum(part) / len(part) for part in (history[:5], history[-5:]))
print(f"error of the covariance: {first:.2f} at first, {last:.2f} at last")

# %%
figure = new_figure(7.0, 3.6)
axes = figure.subplots()
axes.plot(range(1, len(history) + 1), history, color=COLOURS[0])
axes.set(xlabel="step of training, 32 scenes each", ylabel="normalised squared error", ylim=(0, None))
axes.grid(color="#dddddd", linewidth=0.6)
figure.savefig("own_surface.png", dpi=80)
