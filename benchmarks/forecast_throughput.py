"""Training throughput of the forecaster beside PatchTST and ModernTCN-like networks in plain PyTorch:
series a second, one update each.

    python benchmarks/forecast_throughput.py --device cuda

Same windows, batch, loss (squared error of the mean) and optimiser. PatchTST as published for ETT (patch 16, stride 8,
three layers, width 16, four heads, feed-forward 128, batch norm); the ModernTCN-like network has one stage of one
block: depthwise convolution over patches with kernels 51 and 5, and a feed-forward, width 64. Shapes: S series, L past
steps, T future steps, D width, N patches.
"""

import argparse
import os
import platform
import time

import torch
from torch import Tensor, nn

from unipercept.forecasting.network import SeriesForecaster
from unipercept.forecasting.settings import ForecastConfig


class PatchTST(nn.Module):
    """Patches as tokens, encoder, flatten head; instance norm around. Source: Nie et al. (2023)."""

    def __init__(self, lookback: int, horizon: int, width: int = 16, patch: int = 16, stride: int = 8) -> None:
        super().__init__()
        self.patch, self.stride = patch, stride
        patches = (lookback - patch) // stride + 2
        self.embed = nn.Linear(patch, width)
        self.position = nn.Parameter(0.02 * torch.randn(patches, width))
        self.layers = nn.ModuleList(_EncoderLayer(width) for _ in range(3))
        self.head = nn.Sequential(nn.Flatten(1), nn.Dropout(0.3), nn.Linear(width * patches, horizon))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        z = nn.functional.pad((x - mean) / std, (0, self.stride), mode="replicate")
        y = self.embed(z.unfold(1, self.patch, self.stride)) + self.position
        for layer in self.layers:
            y = layer(y)
        return self.head(y.transpose(1, 2)) * std + mean


class _EncoderLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, dropout=0.3, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(width, 128), nn.GELU(), nn.Dropout(0.3), nn.Linear(128, width), nn.Dropout(0.3)
        )
        self.first, self.second = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

    def forward(self, y: Tensor) -> Tensor:
        y = y + self.attention(y, y, y, need_weights=False)[0]
        y = self.first(y.transpose(1, 2)).transpose(1, 2)
        y = y + self.feed(y)
        return self.second(y.transpose(1, 2)).transpose(1, 2)


class ModernTCNLike(nn.Module):
    """Patch stem, one large-kernel block, flatten head; instance norm around. After Luo and Wang (2024)."""

    def __init__(self, lookback: int, horizon: int, width: int = 64, patch: int = 8, stride: int = 4) -> None:
        super().__init__()
        patches = lookback // stride
        self.pad = patch - stride
        self.stem = nn.Sequential(nn.Conv1d(1, width, patch, stride), nn.BatchNorm1d(width))
        self.large = nn.Sequential(nn.Conv1d(width, width, 51, padding=25, groups=width), nn.BatchNorm1d(width))
        self.small = nn.Sequential(nn.Conv1d(width, width, 5, padding=2, groups=width), nn.BatchNorm1d(width))
        self.feed = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Conv1d(width, 2 * width, 1),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Conv1d(2 * width, width, 1),
        )
        self.head = nn.Sequential(nn.Flatten(1), nn.Dropout(0.3), nn.Linear(width * patches, horizon))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        y = self.stem(nn.functional.pad((x - mean) / std, (0, self.pad), mode="replicate")[:, None])
        y = y + self.feed(self.large(y) + self.small(y))
        return self.head(y) * std + mean


class Ours(nn.Module):
    """The forecaster's mean."""

    def __init__(self, lookback: int, horizon: int) -> None:
        super().__init__()
        config = ForecastConfig(lookback=lookback, horizon=horizon, period=24, dim=16, blocks=2, patch=4, dropout=0.3)
        self.network = SeriesForecaster(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x[..., None], with_quantiles=False).point[..., 0]


def series_a_second(
    model: nn.Module, lookback: int, horizon: int, batch: int, device: torch.device, steps: int
) -> float:
    """Median of single updates after a warm-up; on a GPU as one captured graph."""
    model = model.to(device).train()
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, capturable=on_gpu, foreach=True
    )
    x, y = torch.randn(batch, lookback, device=device), torch.randn(batch, horizon, device=device)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        (model(x) - y).square().mean().backward()
        optimizer.step()

    call = update
    if on_gpu:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                update()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            update()
        call = graph.replay
    times = []
    for i in range(steps + 3):
        began = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        if i >= 3:
            times.append(time.perf_counter() - began)
    return batch / sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--horizons", type=int, nargs="+", default=[96, 720])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    print(
        f"{name}; torch {torch.__version__}, Python {platform.python_version()}; float32, batch {arguments.batch}, look-back 512\n"
    )
    print("| network | horizon | parameters | series/s |\n| --- | ---: | ---: | ---: |", flush=True)
    for horizon in arguments.horizons:
        for kind in (Ours, PatchTST, ModernTCNLike):
            torch.manual_seed(0)
            model = kind(512, horizon)
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            speed = series_a_second(model, 512, horizon, arguments.batch, device, arguments.steps)
            print(f"| {kind.__name__} | {horizon} | {count:,} | {speed:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
