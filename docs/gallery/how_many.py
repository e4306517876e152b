"""How many sources are there?

The number is not asked for, it is found: sources are added while the likelihood says that they explain more than noise
would. Each has a confidence, the probability that it is real and in its place.
"""

# %%
# Scenes of one to five sources before a surface, with as much noise as signal, and what the shipped model reports.
from risfast import Localizer, datasets
from risfast.report.plots import COLOURS, FOUND_COLOUR, new_figure

localizer = Localizer.from_pretrained()
true, confidence = [], []
for count in (1, 2, 3, 4, 5):
    sample = datasets.surface_measurement(n_sources=count, snr_db=0.0, seed=10 + count)
    found = localizer.localize(sample.recording)[0]
    true.append(count)
    confidence.append(found.confidence.tolist())
    print(f"{count} true, {len(found)} found, confidences {' '.join(f'{value:.2f}' for value in confidence[-1])}")

# %%
# A bar for each scene, and the confidences of its sources.
figure = new_figure(8.0, 3.6)
left, right = figure.subplots(1, 2)
left.bar(true, [len(values) for values in confidence], color=COLOURS[0], width=0.6)
left.plot(true, true, "_", color=FOUND_COLOUR, markersize=24, markeredgewidth=2, label="true number")
left.set(xlabel="sources in the scene", ylabel="sources found")
left.legend(frameon=False)
for count, values in zip(true, confidence, strict=True):
    right.plot([count] * len(values), values, "o", color=COLOURS[0], mfc="none")
right.set(xlabel="sources in the scene", ylabel="confidence of each", ylim=(0, 1.05))
figure.savefig("how_many.png", dpi=80)
