"""A small package with the names and signatures that the adapters use: plain MUSIC in place of networks.

It also does at import what the adapters must undo: it prints, warns, seeds every generator and changes torch.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

FILES = {
    "src/__init__.py": "",
    "src/models_pack/__init__.py": "",
    "src/utils.py": """
        import random
        import warnings

        import numpy as np
        import torch

        print("running")
        warnings.warn("imported")
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
    """,
    "src/system_model.py": """
        import numpy as np

        import src.utils


        class SystemModelParams:
            N = M = T = None
            field_type = "Far"

            def set_parameter(self, name, value):
                setattr(self, name, value)
                return self


        class SystemModel:
            def __init__(self, params):
                self.params = params
                self.array = np.arange(params.N) * 1.0

            def steering_vec(self, theta, distance=None, nominal=False):
                x = self.array[:, None] / 2
                delay = x * np.sin(theta) - (x * np.cos(theta)) ** 2 / (2 * distance)
                return np.exp(-2j * np.pi * delay)
    """,
    "src/models_pack/subspacenet.py": """
        import torch
        from torch import nn


        class Music(nn.Module):
            def __init__(self, system):
                super().__init__()
                self.system = system
                self.angles = torch.linspace(-1.05, 1.05, 211, dtype=torch.float64)
                self.distances = torch.arange(8, 30, 0.25, dtype=torch.float64).requires_grad_(True)
                self.set_search_grid()

            def set_search_grid(self):
                angle, distance = torch.meshgrid(self.angles, self.distances.detach(), indexing="ij")
                grid = self.system.steering_vec(angle.flatten().numpy(), distance=distance.flatten().numpy())
                self.grid, self.at = torch.from_numpy(grid), torch.stack([angle, distance], -1).flatten(0, 1)

            def level(self, covariance, count):
                signal = torch.linalg.eigh(covariance).eigenvectors[..., -count:]
                return (signal.mH @ self.grid).abs().square().sum(1)

            def peaks(self, covariance, count):
                found = []
                for level in self.level(covariance, count):
                    rows = []
                    for _ in range(count):
                        best = self.at[level.argmax()]
                        rows.append(best)
                        level = torch.where((self.at[:, 0] - best[0]).abs() < 0.15, -1.0, level)
                    found.append(torch.stack(rows))
                return torch.stack(found).unbind(-1)


        class SubspaceNet(nn.Module):
            def __init__(self, tau, diff_method="root_music", system_model=None, field_type="Far"):
                super().__init__()
                print("made", diff_method, field_type)
                self.conv1 = nn.Conv2d(tau, 2, 2)
                self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))
                self.diff_method, self.field_type = Music(system_model), field_type

            def covariance(self, x):
                x = x - x.mean(-1, keepdim=True)
                return x @ x.mH / (x.shape[-1] - 1)

            def seen(self, x):
                value = torch.linalg.eigvalsh(self.covariance(x))
                return (value > 0.2 * value[:, -1:]).sum(1).to(torch.int)

            def forward(self, x, sources_num=None):
                angle, distance = self.diff_method.peaks(self.covariance(x), int(sources_num))
                if self.field_type == "Far":
                    return angle + self.shift[0], self.seen(x), self.shift.square().sum()
                return angle + self.shift[0], distance + self.shift[1], self.seen(x), None
    """,
    "src/models_pack/dcd_music.py": """
        import torch

        from src.models_pack.subspacenet import SubspaceNet


        class DCDMUSIC(SubspaceNet):
            def __init__(self, tau, system_model=None, state_path=None):
                super().__init__(tau, "music_1D", system_model, "Near")
                if state_path in (None, ""):
                    raise FileNotFoundError("it would look for weights of its own")
                self.angle_extractor = SubspaceNet(tau, "esprit", system_model, "Far")
                self.extractor_trained = []

            def forward(self, x, number_of_sources, train_angle_extractor=False):
                self.extractor_trained.append(train_angle_extractor)
                angle = self.angle_extractor(x, number_of_sources)[0]
                distance = super().forward(x, number_of_sources)[1]
                return angle if train_angle_extractor else angle.detach(), distance, self.seen(x), None
    """,
    "src/criterions.py": """
        import torch
        from torch import nn


        class RMSPELoss(nn.Module):
            def __init__(self, balance_factor=None):
                super().__init__()

            def forward(self, doa_predictions, doa):
                return (doa_predictions.sort(1).values - doa.sort(1).values).square().mean(1).sqrt().sum()


        class CartesianLoss(nn.Module):
            def forward(self, predictions_angle, targets_angle, predictions_distance, targets_distance):
                def order(angle, distance):
                    index = angle.argsort(1)
                    return angle.gather(1, index), distance.gather(1, index)

                a, r = order(predictions_angle, predictions_distance)
                b, q = order(targets_angle, targets_distance)
                apart = (r * a.sin() - q * b.sin()).square() + (r * a.cos() - q * b.cos()).square()
                return apart.sqrt().mean(1).sum()
    """,
}


def write_checkout(folder: Path, **changed: tuple[str, str]) -> Path:
    """The package in a folder; ``changed`` replaces a text of a file named by its stem."""
    for name, indented in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = dedent(indented).lstrip()
        if path.stem in changed:
            old, new = changed[path.stem]
            assert old in text
            path.write_text(text.replace(old, new))
        else:
            path.write_text(text)
    return folder
