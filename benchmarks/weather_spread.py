"""How wide the default's ensembles shall be: spread over skill for one perturbation of the tendencies after another.

    unipercept weather generate -o validation.zarr --days 366 --start 2086-01-02 --seed 1002
    python benchmarks/weather_spread.py validation.zarr --amplitudes 0.8 1.0 1.2 --hours 12 24 48

Amplitudes multiply the channels' own: by how much a step of the model misses, as a share of its change
(one_step_shares), on the same run; with --alike all channels have the same. Spread over skill is sqrt((M + 1) / M)
times the root of the mean variance over the root of the mean squared error of the ensemble's mean; `all` takes every
channel in its standard deviation. The setting that is shipped is judged once, elsewhere: by
`unipercept weather evaluate` on the test run.

Shapes: N initial times, M members, V channels, H rows, W columns.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unipercept.app.forecaster.cascade import Cascade, State
from unipercept.app.forecaster.cascade_file import DEFAULT, load_cascade
from unipercept.app.forecaster.ensemble import TendencyNoise, one_step_shares
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.model import ForecastModel
from unipercept.pipelines.weather_grid import area_weights

SHOWN_STEPS = (1, 2, *range(4, 29, 4))


class Starts:
    """Initial times of a source, their states, and the truths after them.

    Args:
        every: states between two of them.
        steps: that must follow each.
    """

    def __init__(self, frames: Frames, every: int, steps: int) -> None:
        self.frames = frames
        self.numbers = np.arange(1, len(frames) - steps, every)

    def state(self, members: int, device: torch.device) -> State:
        """All of them as one batch, each `members` times in a row."""
        frames = np.stack([self.frames.read([n - 1, n]) for n in self.numbers])
        each = torch.from_numpy(frames).to(device).repeat_interleave(members, dim=0)
        return State(each, np.repeat(self.frames.times[self.numbers], members))

    def truth(self, step: int, device: torch.device) -> Tensor:
        """NxVxHxW."""
        return torch.from_numpy(self.frames.read((self.numbers + step).tolist())).to(device)


def measured(
    cascade: Cascade, starts: Starts, noise: TendencyNoise, std: Tensor
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Mean variance of the members and mean squared error of their mean, V values in units of the
    channels' variance, by step.
    """
    rows = torch.as_tensor(area_weights(np.asarray(noise.grid.latitude)), dtype=torch.float32, device=std.device)[
        :, None
    ]
    spread, skill = {}, {}
    for state in cascade.run(starts.state(noise.members, std.device), max(SHOWN_STEPS), [noise]):
        if state.step in SHOWN_STEPS:
            found = (state.latest / std).unflatten(0, (-1, noise.members))
            error = found.mean(1) - starts.truth(state.step, std.device) / std
            spread[state.step] = (found.var(1) * rows).mean(dim=(0, 2, 3)).cpu()
            skill[state.step] = (error.square() * rows).mean(dim=(0, 2, 3)).cpu()
    return spread, skill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a run of the generator that neither trained nor tests anything")
    parser.add_argument("--run", default=DEFAULT, help="a trained folder; the shipped default unless given")
    parser.add_argument("--every", type=int, default=60, help="states between two initial times")
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--stages", type=int, default=1, help="of the cascade")
    parser.add_argument("--amplitudes", type=float, nargs="+", default=[0.8, 1.0, 1.2])
    parser.add_argument("--hours", type=float, nargs="+", default=[12, 24, 48])
    parser.add_argument("--lengths", type=float, nargs="+", default=[1000.0])
    parser.add_argument("--alike", action="store_true", help="the same amplitude in all channels")
    parser.add_argument("--channels", action="store_true", help="a line for each channel too")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cascade = load_cascade(arguments.run, device, n_stages=arguments.stages)
    model = cascade.model(0)
    assert isinstance(model, ForecastModel)
    frames = Frames(arguments.source, model.channels)
    starts = Starts(frames, arguments.every, max(SHOWN_STEPS))
    shares = one_step_shares(model, frames, slice(0, len(frames)), device=device)
    print("one step's error over its change: " + ", ".join(f'"{name}": {share:.4f}' for name, share in shares.items()))
    std = torch.tensor(model.statistics.std, dtype=torch.float32, device=device)[:, None, None]
    print(f"{len(starts.numbers)} initial times, {arguments.members} members; days {[s / 4 for s in SHOWN_STEPS]}")
    for length, hours, amplitude in itertools.product(arguments.lengths, arguments.hours, arguments.amplitudes):
        amplitudes = tuple(amplitude * (1.0 if arguments.alike else share) for share in shares.values())
        noise = TendencyNoise(arguments.members, model.grid, model.step_hours, amplitudes, length, hours)
        spread, skill = measured(cascade, starts, noise, std)
        more = (1 + 1 / arguments.members) ** 0.5
        ratios = torch.stack([(spread[s] / skill[s]).sqrt() for s in SHOWN_STEPS]) * more
        total = [more * float((spread[s].sum() / skill[s].sum()).sqrt()) for s in SHOWN_STEPS]
        error = [float(skill[s].mean().sqrt()) for s in SHOWN_STEPS]
        print(f"amplitude {amplitude:g}, {length:g} km, {hours:g} h")
        print("  all      " + " ".join(f"{v:5.2f}" for v in total))
        print("  lowest   " + " ".join(f"{v:5.2f}" for v in ratios.amin(1)))
        print("  highest  " + " ".join(f"{v:5.2f}" for v in ratios.amax(1)))
        print("  rmse     " + " ".join(f"{v:5.3f}" for v in error), flush=True)
        for k, channel in enumerate(model.channels if arguments.channels else ()):
            print(f"  {channel:<8} " + " ".join(f"{v:5.2f}" for v in ratios[:, k].tolist()), flush=True)


if __name__ == "__main__":
    main()
