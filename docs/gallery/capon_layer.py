"""How do I put a Capon layer into a network?

The spectrum is differentiable in the covariance. Here it is the last layer of a model that learns the unknown phases of
an array's elements from sources at known places.
"""

# %%
# 36 elements whose phases nobody knows, and the covariances of 16 sources at points of a grid.
import torch

from risfast import SearchGrid, SensorArray
from risfast.ops import mvdr_spectrum
from risfast.report.plots import COLOURS, new_figure
from risfast.steering import steering_vectors

generator = torch.Generator().manual_seed(0)
array = SensorArray.rectangular(6, 6)
grid = SearchGrid.box(25, 13, (1.0, 2.0), 0.8, 0.4)
unknown = 0.6 * torch.randn(array.n_elements, generator=generator)
index = torch.randint(grid.size, (16,), generator=generator)
a = steering_vectors(array, *grid.points().reshape(-1, 3)[index].T) * torch.polar(torch.ones(36), unknown)
covariances = a[:, :, None] * a[:, None].conj() + 0.05 * torch.eye(36)

# %%
# The loss is high where the power at the known places is low beside the mean of the map.
phase = torch.nn.Parameter(torch.zeros(array.n_elements))
optimiser = torch.optim.Adam([phase], lr=0.05)
errors = []
for _ in range(60):
    turn = torch.polar(torch.ones_like(phase), phase)
    power = mvdr_spectrum(turn[:, None] * covariances * turn.conj(), array, grid, reduce="none").flatten(1)
    loss = (power.mean(1).log() - power[torch.arange(16), index].log()).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    left = phase.detach() + unknown
    left = torch.polar(torch.ones_like(left), left - left[0]).angle()
    errors.append(float(left.square().mean().sqrt()))
print(f"phase error: {errors[0]:.2f} rad after the first step, {errors[-1]:.2f} rad after the last")

# %%
figure = new_figure(7.0, 3.6)
axes = figure.subplots()
axes.plot(range(1, len(errors) + 1), errors, color=COLOURS[0])
axes.set(xlabel="step", ylabel="rms phase error (rad)", ylim=(0, None))
axes.grid(color="#dddddd", linewidth=0.6)
figure.savefig("capon_layer.png", dpi=80)
