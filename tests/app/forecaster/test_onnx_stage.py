"""Graphs with the interfaces of the released models, made here: what goes in, what comes out, as a cascade's stages."""

from pathlib import Path

import numpy as np
import pytest
import torch

from unipercept.app.forecaster.cascade import Cascade, State
from unipercept.app.forecaster.cascade_file import load_cascade, save_cascade
from unipercept.app.forecaster.clock import released_time_vector
from unipercept.app.forecaster.onnx_stage import PANGU69, OnnxModel, global_grid
from unipercept.errors import InputError, WeightsError

onnx = pytest.importorskip("onnx", reason="small graphs are made with it")
pytest.importorskip("onnxruntime", reason="graphs are run with it")

TIME = np.array(["2018-03-04T06"], "datetime64[ns]")


def save(
    path: Path, nodes: list, inputs: dict[str, list[int]], outputs: dict[str, list[int]], **constants: np.ndarray
) -> Path:
    def tensors(shapes: dict[str, list[int]]) -> list:
        return [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes.items()]

    known = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "test", tensors(inputs), tensors(outputs), known)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def node(kind: str, inputs: list[str], output: str, **attributes: object) -> object:
    return onnx.helper.make_node(kind, inputs, [output], **attributes)


def extrapolation(path: Path, time_input: str | None, both: bool = False) -> Path:
    """2 x(t) - x(t - 1), plus the sum of the time vector; FuXi's kind returns x(t) before it."""
    nodes = [
        node("Gather", ["input", "first"], "before", axis=1),
        node("Gather", ["input", "second"], "now", axis=1),
        node("Sub", ["now", "before"], "change"),
        node("Add", ["now", "change"], "next"),
    ]
    inputs = {"input": [1, 2, 3, 4, 8]}
    result = "next"
    if time_input:
        inputs[time_input] = [1, 12] if time_input == "temb" else [1, 1, 12]
        nodes += [node("ReduceSum", [time_input], "sum", keepdims=0), node("Add", ["next", "sum"], "timed")]
        result = "timed"
    if both:
        nodes.append(node("Concat", ["now", result], "output", axis=1))
    else:
        nodes.append(node("Identity", [result], "output"))
    constants = {"first": np.array([0]), "second": np.array([1])}
    return save(path, nodes, inputs, {"output": [1, 2 if both else 1, 3, 4, 8]}, **constants)


def states(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 2, 3, 4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("time_input", "both"), [(None, False), ("time_embeddings", False), ("temb", True)])
def test_states_and_times_reach_the_graph(tmp_path: Path, time_input: str | None, both: bool) -> None:
    model = OnnxModel(extrapolation(tmp_path / "m.onnx", time_input, both), channels=("z500", "t850", "msl"))
    x, times = states(), np.concatenate([TIME, TIME + np.timedelta64(18, "h")])
    extra = torch.tensor([released_time_vector(t).sum() for t in times]) if time_input else torch.zeros(2)
    assert torch.allclose(model(x, times), 2 * x[:, 1] - x[:, 0] + extra[:, None, None, None], atol=1e-5)
    assert model.frames == 2
    assert model.grid == global_grid(4, 8)
    assert model.units == ("m2 s-2", "K", "Pa")


def test_pangu_splits_its_state_into_upper_air_and_surface(tmp_path: Path) -> None:
    nodes = [
        node("Add", ["input", "input"], "output"),
        node("Neg", ["input_surface"], "output_surface"),
    ]
    shapes = {"input": [5, 13, 4, 8], "input_surface": [4, 4, 8]}
    outputs = {"output": shapes["input"], "output_surface": shapes["input_surface"]}
    model = OnnxModel(save(tmp_path / "pangu.onnx", nodes, shapes, outputs), step_hours=24)
    x = torch.randn(1, 1, 69, 4, 8)
    y = model(x, TIME)
    assert torch.equal(y, torch.cat([2 * x[:, 0, :65], -x[:, 0, 65:]], dim=1))
    assert model.channels == PANGU69
    assert model.channels[:2] == ("z1000", "z925")
    assert model.frames == 1


def test_graphs_are_stages_of_a_cascade(tmp_path: Path) -> None:
    for name in ("short", "medium"):
        extrapolation(tmp_path / f"{name}.onnx", "time_embeddings" if name == "medium" else None)
    entries = [
        {"name": n, "model": f"{n}.onnx", "steps": 2, "channels": ["z500", "t850", "msl"]} for n in ("short", "medium")
    ]
    save_cascade(tmp_path / "cascade.json", entries)
    cascade = load_cascade(tmp_path)
    assert isinstance(cascade, Cascade)
    x = states(1)
    found = [s.latest for s in cascade.run(State(x, TIME), 3)]
    change = x[:, 1] - x[:, 0]
    assert torch.allclose(found[1], x[:, 1] + 2 * change, atol=1e-5)
    vector = released_time_vector(TIME[0] + np.timedelta64(12, "h")).sum()
    assert torch.allclose(found[2], x[:, 1] + 3 * change + float(vector), atol=1e-4)


def test_what_is_no_weather_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no ONNX graph"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="cannot read"):
        OnnxModel(tmp_path / "bad.onnx")
    other = save(tmp_path / "other.onnx", [node("Identity", ["x"], "y")], {"x": [1, 3]}, {"y": [1, 3]})
    with pytest.raises(InputError, match="a weather graph takes `input`"):
        OnnxModel(other)
    with pytest.raises(InputError, match="has 3 channels; name them"):
        OnnxModel(extrapolation(tmp_path / "m.onnx", None))
