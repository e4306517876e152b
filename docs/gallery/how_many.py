"""How many sources are there?

The number is not asked for, it is found: sources are added while the likelihood says that they explain more than noise
would. Those that are reported are probably real and in their places. How many there are is another question, for a weak
source whose place is unsure is one more, and has an answer of its own: a probability for every number.
"""

# %%
# Scenes of one to five sources before a surface, with as much noise as signal, and what the shipped model reports.
import torch

from risfast import Localizer, datasets
from risfast.report.plots import FOUND_COLOUR, MAP_COLOURS, new_figure

localizer = Localizer.from_pretrained()
numbers, probability = (1, 2, 3, 4, 5), []
for number in numbers:
    sample = datasets.surface_measurement(n_sources=number, snr_db=0.0, seed=10 + number)
    result = localizer.analyse(sample.recording, count="equal")
    probability.append(result.count_probability[0, :8])
    likeliest = int(probability[-1].argmax())
    print(f"{number} true, {len(result.sources[0])} reported, {likeliest} most probably there")

# %%
# A column for each scene; the darker a field, the more probable that number.
figure = new_figure(6.0, 4.2)
axes = figure.subplots()
columns = torch.stack(probability, 1).numpy()
drawn = axes.imshow(columns, origin="lower", cmap=MAP_COLOURS, vmin=0, vmax=1, aspect="auto")
axes.plot(range(len(numbers)), numbers, "_", color=FOUND_COLOUR, markersize=40, markeredgewidth=2, label="true number")
axes.set(xlabel="sources in the scene", ylabel="number of sources", xticks=range(len(numbers)), xticklabels=numbers)
axes.legend(loc="upper left", markerscale=0.5)
figure.colorbar(drawn, label="probability")
figure.savefig("how_many.png", dpi=80)
