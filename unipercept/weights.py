"""Checkpoints: published files by name, their download and cache, strict loading in either form, conversion.

Nothing is unpickled: `.pth` files are read with `weights_only=True`, everything written is safetensors.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unipercept.atomic import atomic_path
from unipercept.backbone import VARIANTS, FeatureExtractor, UniRepLKNet, adapt_stem
from unipercept.download import Progress, cached_path, fetch_file
from unipercept.errors import InputError, WeightsError, one_line
from unipercept.reparam import reparameterize
from unipercept.van import VAN

REPOSITORY = "DingXiaoH/UniRepLKNet"  # on the Hugging Face hub
DEFAULT_REVISION = "main"  # NAME@COMMIT pins one
WRAPPERS = ("model", "state_dict", "model_ema")
PREFIXES = ("module.", "backbone.")
STEM = "downsample_layers.0.0.weight"
HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class PublishedFile:
    """An official checkpoint.

    `accuracy` is the published ImageNet-1K top-1 in percent, or None for pretraining files.
    """

    variant: str
    file: str
    num_classes: int
    image_size: int
    accuracy: float | None
    trained_on: str


def _in1k(letter: str, accuracy: float) -> PublishedFile:
    file = f"unireplknet_{letter}_in1k_224_acc{accuracy:.2f}.pth"
    return PublishedFile(f"unireplknet_{letter}", file, 1000, 224, accuracy, "ImageNet-1K")


def _in22k(letter: str, image_size: int) -> PublishedFile:
    file = f"unireplknet_{letter}_in22k_pretrain.pth"
    return PublishedFile(f"unireplknet_{letter}", file, 21841, image_size, None, "ImageNet-22K")


def _in22k_to_in1k(letter: str, accuracy: float) -> PublishedFile:
    file = f"unireplknet_{letter}_in22k_to_in1k_384_acc{accuracy:.2f}.pth"
    return PublishedFile(f"unireplknet_{letter}", file, 1000, 384, accuracy, "ImageNet-22K, then ImageNet-1K")


PUBLISHED: dict[str, PublishedFile] = {
    **{
        f"unireplknet_{letter}.in1k_224": _in1k(letter, accuracy)
        for letter, accuracy in [("a", 77.03), ("f", 78.58), ("p", 80.23), ("n", 81.64), ("t", 83.21), ("s", 83.91)]
    },
    **{f"unireplknet_{x}.in22k": _in22k(x, size) for x, size in [("s", 224), ("b", 224), ("l", 192), ("xl", 192)]},
    **{
        f"unireplknet_{letter}.in22k_to_in1k_384": _in22k_to_in1k(letter, accuracy)
        for letter, accuracy in [("s", 86.44), ("b", 87.40), ("l", 87.88), ("xl", 87.96)]
    },
}


def published(name: str) -> tuple[PublishedFile, str] | None:
    """The published file that NAME or NAME@REVISION means, and the revision ("main" where none is
    given); None for other names.

    As in timm, a revision is a branch, tag or commit of the hub; only a commit names the same file for ever.
    """
    name, _, revision = name.partition("@")
    return (PUBLISHED[name], revision or DEFAULT_REVISION) if name in PUBLISHED else None


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """The file of a published model, NAME or NAME@REVISION: from the cache, else downloaded into it.

    The hub announces the commit and the SHA-256 of what it sends; the download is checked against that and
    both are recorded beside it. From then on the file in the cache, and a later download of the same
    revision, must have that hash.

    Raises:
        InputError: no such name.
        WeightsError: offline and not cached, or the download failed, is damaged or has
            changed; the line says what to do.
    """
    found = published(name)
    if found is None:
        raise InputError(f"published weights are {', '.join(PUBLISHED)}; got {name!r}")
    file, revision = found
    return fetch_file(REPOSITORY, file.file, revision=revision, progress=progress)


def cached_file(name: str) -> Path | None:
    """The file of a published model, NAME or NAME@REVISION, if it is in the cache."""
    found = published(name)
    path = cached_path(REPOSITORY, found[0].file, found[1]) if found else None
    return path if path and path.is_file() else None


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """State dict of a .safetensors or .pth file, without wrappers (`model`, `state_dict`) and
    prefixes (`module.`, `backbone.`).

    Raises:
        WeightsError: the file cannot be read, or holds no state dict.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"there is no checkpoint {path}; check the spelling")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return strip_prefixes(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        text = one_line(error)
        # Of other files torch says "101" or "pop from empty list".
        reason = text if " " in text and _looks_like_one(path) else "it is not one, or it is damaged"
        if reason.startswith("Weights only load failed"):  # torch goes on to say how to run the code in the file
            reason = "it holds more than tensors, and nothing else is unpickled; save its state dict as safetensors"
        raise WeightsError(f"cannot read {path} as a checkpoint: {reason}") from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"{path} holds no state dict; expected names to tensors, bare or under {', '.join(WRAPPERS)}"
        )
    return strip_prefixes(content)


def _looks_like_one(path: Path) -> bool:
    """Whether a file starts like those of torch.save (a ZIP archive; before torch 1.6 a pickle) or
    has the suffix .safetensors.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        return True
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without prefixes that wrap the backbone. Keys of other parts (a neck, a decoder) are left out."""
    result = dict(state)
    for prefix in (*PREFIXES, *PREFIXES):  # in either order
        if any(key.startswith(prefix) for key in result):
            result = {key.removeprefix(prefix): value for key, value in result.items() if key.startswith(prefix)}
    return result


@dataclass(frozen=True)
class Layout:
    """The architecture that a state dict implies."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    in_channels: int
    num_classes: int
    deploy: bool
    layer_scale: bool
    has_branches: bool = True

    @property
    def variant(self) -> str | None:
        """The name in `VARIANTS` of these sizes, or None."""
        for name, variant in VARIANTS.items():
            if (variant.depths, variant.dims, variant.kernel_sizes) == (self.depths, self.dims, self.kernel_sizes):
                return name
        return None

    def network(self, **changes: Any) -> UniRepLKNet:
        """A fresh network of this architecture and form; `changes` are settings of
        `UniRepLKNet`, e.g. `in_channels`.
        """
        settings: dict[str, Any] = {
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "layer_scale_init_value": 1e-6 if self.layer_scale else None,
            "deploy": self.deploy,
            "has_branches": self.has_branches,
        }
        return UniRepLKNet(self.depths, self.dims, self.kernel_sizes, **{**settings, **changes})


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """Read the architecture off the names and shapes of a state dict.

    Raises:
        WeightsError: it is not a UniRepLKNet.
    """
    blocks = {(int(m[1]), int(m[2])) for m in (re.match(r"stages\.(\d+)\.(\d+)\.", key) for key in state) if m}
    depths = tuple(sum(1 for stage, _ in blocks if stage == i) for i in range(4))
    try:
        dims = tuple(state[f"stages.{i}.0.pwconv1.1.weight"].shape[1] for i in range(4))
        kernels = tuple(tuple(_kernel_size(state, i, j) for j in range(depths[i])) for i in range(4))
        in_channels = state[STEM].shape[1]
    except (KeyError, IndexError) as error:
        raise WeightsError(f"the checkpoint is not a UniRepLKNet: it lacks {one_line(error)}") from error
    head = state.get("head.weight")
    return Layout(
        depths,
        dims,
        kernels,
        in_channels,
        0 if head is None else head.shape[0],
        deploy="stages.0.0.pwconv2.0.bias" in state,
        layer_scale="stages.0.0.gamma" in state,
        has_branches=any(".dwconv.origin_bn." in key for key in state)
        or not any(".dwconv.lk_origin." in key for key in state),
    )


def build_from_state(state: Mapping[str, Tensor], source: str = "the checkpoint") -> UniRepLKNet:
    """The classification or feature-vector model that a state dict describes, loaded strictly, in the state's own form.

    The four norms of a dense-task file are left out; without `norm` the pooled features get
    a fresh one, with a warning.
    """
    model = layout_of(state).network()
    load_state(model, state, source)
    return model


def load_state(
    model: UniRepLKNet | FeatureExtractor, state: Mapping[str, Tensor], source: str = "the checkpoint"
) -> None:
    """Load a state dict strictly, in place; a training state also goes into a deploy-form model, folded on the way.

    Two exceptions, each with a warning: a stem of other input channels is adapted as timm does, and norms that only one
    of the two modes (vector, four maps) has are left out or stay fresh.

    Raises:
        WeightsError: the state does not fit the model; one line names what is missing, left over or of another shape.
    """
    state = dict(state)
    if model.deploy and not layout_of(state).deploy:
        dense_norms = {key: value for key, value in state.items() if re.match(r"norm\d\.", key)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing keys of the requested model are reported below
            folded = reparameterize(build_from_state(state, source)).state_dict()
        own = {key for key in folded if key.startswith("norm.")} - state.keys()
        state = {key: value for key, value in folded.items() if key not in own} | dense_norms
    if isinstance(model, FeatureExtractor) or model.num_classes == 0:
        for key in HEAD:
            state.pop(key, None)
    _reconcile_norms(model, state, source)
    if STEM in state and state[STEM].shape[1] != model.in_channels:
        warnings.warn(
            f"{source} was trained on {state[STEM].shape[1]} input channels; its stem is adapted to {model.in_channels}",
            stacklevel=2,
        )
        state[STEM] = adapt_stem(state[STEM], model.in_channels)
    _check_strict(model.state_dict(), state, source)
    model.load_state_dict(state, strict=True)


def load_pretrained(model: UniRepLKNet | FeatureExtractor, source: str | Path, variant: str) -> None:
    """Load published weights by name, or a checkpoint file, into a model of `variant`; see load_state.

    Raises:
        InputError: the published weights are of another variant.
        WeightsError: they do not fit or cannot be obtained.
    """
    if known := published(str(source)):
        if known[0].variant != variant:
            raise InputError(f"weights {source!r} are of {known[0].variant}, not of {variant}")
        source = fetch(str(source))
    elif not isinstance(source, str | Path) or not Path(source).exists():  # True, as timm takes it, names no weights
        raise InputError(f"pretrained must be a checkpoint file or one of {', '.join(PUBLISHED)}; got {str(source)!r}")
    load_state(model, read_checkpoint(source), str(source))


def load_van(model: VAN, source: str | Path) -> None:
    """Load an official VAN checkpoint file strictly; its head is left out where the model has none.

    Raises:
        InputError: no such file.
        WeightsError: it does not fit or cannot be read.
    """
    if not isinstance(source, str | Path) or not Path(source).exists():
        raise InputError(f"pretrained must be a checkpoint file for a VAN; got {str(source)!r}")
    state = read_checkpoint(source)
    if model.num_classes == 0:
        state = {key: value for key, value in state.items() if key not in HEAD}
    _check_strict(model.state_dict(), state, str(source))
    model.load_state_dict(state, strict=True)


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model's state dict as safetensors, atomically, with `metadata` as JSON in its header."""
    from safetensors.torch import save_file

    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"unipercept": json.dumps(dict(metadata or {}))})


def convert(checkpoint: str | Path, output: str | Path, *, reparameterized: bool = False) -> UniRepLKNet:
    """Write any checkpoint of ours or of the authors as safetensors, on request folded into deploy form; returns the
    model.

    Raises:
        InputError: `output` is not a .safetensors file.
        WeightsError: the checkpoint cannot be read or is not a UniRepLKNet.
    """
    if Path(output).suffix != ".safetensors":
        raise InputError(f"the output must end in .safetensors, got {output}")
    state = read_checkpoint(checkpoint)
    model = build_from_state(state, str(checkpoint))
    if reparameterized:
        folded = reparameterize(model)
        assert isinstance(folded, UniRepLKNet)
        model = folded
    layout = layout_of(state)
    save_weights(
        model,
        output,
        {
            "variant": layout.variant,
            "in_channels": layout.in_channels,
            "num_classes": layout.num_classes,
            "deploy": model.deploy,
            "converted_from": Path(checkpoint).name,
        },
    )
    return model


def _kernel_size(state: Mapping[str, Tensor], stage: int, block: int) -> int:
    for key in ("dwconv.lk_origin.weight", "dwconv.weight"):
        weight = state.get(f"stages.{stage}.{block}.{key}")
        if weight is not None:
            return weight.shape[-1]
    return 0


def _reconcile_norms(model: UniRepLKNet | FeatureExtractor, state: dict[str, Tensor], source: str) -> None:
    own = model.state_dict()
    norms = [f"norm{i}.{leaf}" for i in ("", *range(4)) for leaf in ("weight", "bias")]
    left_out = [key for key in norms if key in state and key not in own]
    fresh = [key for key in norms if key in own and key not in state]
    for key in left_out:
        del state[key]
    for key in fresh:
        state[key] = own[key]
    if fresh:
        warnings.warn(f"{source} has no {', '.join(fresh)}; they stay as initialised and need training", stacklevel=3)


def _check_strict(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if not (missing or extra or shapes):
        return
    if shapes and not missing and not extra and all(text.startswith("head.") for text in shapes):
        classes, wanted = state["head.weight"].shape[0], own["head.weight"].shape[0]
        raise WeightsError(
            f"{source} has a head of {classes} classes, the model one of {wanted}: build it with num_classes={classes} "
            "(then reset_classifier), or with num_classes=0 to leave the head out"
        )
    parts = [("missing", missing), ("left over", extra), ("other shape", shapes)]
    report = "; ".join(
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})" for what, keys in parts if keys
    )
    raise WeightsError(f"{source} does not fit the model: {report}")
