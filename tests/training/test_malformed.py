"""What a run left on disk and somebody changed: named, never a traceback, never taken for good."""

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detectors.commands.options import add_settings
from detectors.errors import RunError
from detectors.training import checkpoints, run_folder
from detectors.training.fit import check_contents, check_fit
from detectors.training.settings import TrainSettings, resolve
from detectors.training.state import State
from detectors.training.step import sgd

GIVEN = {"detector": "retinanet", "loss": "jol", "preset": "slim", "max_steps": 9, "amp": "fp16"}
SETTINGS = dataclasses.asdict(resolve(GIVEN, 100, None, {}))
NAMES = [field.name for field in dataclasses.fields(TrainSettings)]
DEEP = "[" * 100_000 + "]" * 100_000
ODD: list[Any] = [
    *(math.nan, math.inf, -math.inf, -1, 0, 0.5, 1, 7, 1e300, 10**30, -(10**30)),
    *(None, True, "", "x", "x" * 10_000, "\0", [], [1, "x"], [[1]], [math.nan], {}, {"m": [1]}),
]


def config(text: str, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "no settings of a run"),
        ("null", "wanted an object with the objects settings and data"),
        ("[]", "wanted an object"),
        ('{"settings": [], "data": {}}', "wanted an object"),
        ('{"settings": {}, "data": ""}', "wanted an object"),
        ('{"settings": {}, "data": {}}', "it lacks backbone, backbone_weights, batch_size"),
        ('{"settings": {"": 1}, "data": {}}', "unknown setting ''"),
        (DEEP, "nested too deeply"),
        ('{"settings": {"lr": ' + DEEP + '}, "data": {}}', "nested too deeply"),
        ("9" * 10_000, "no settings of a run"),
    ],
    ids=range(10),
)
def test_a_config_that_is_none(text: str, wanted: str, tmp_path: Path) -> None:
    path = config(text, tmp_path)
    with pytest.raises(RunError) as caught:
        run_folder.read_config(path)
    assert str(caught.value).startswith(f"{path}: ") and wanted in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_config_that_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p)):
        make(path)  # type: ignore[operator]
        with pytest.raises(RunError, match=r"config\.json: missing or broken, cannot be read"):
            run_folder.read_config(path)
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_value_is_refused_or_can_be_used(name: str, tmp_path: Path) -> None:
    for value in ODD:
        path = config(json.dumps({"settings": SETTINGS | {name: value}, "data": {}}), tmp_path)
        try:
            found, _ = run_folder.read_config(path)
        except RunError as error:
            assert f"{path}: " in str(error) and name in str(error) and len(str(error)) < 700
        else:
            assert found[name] == value and not (isinstance(value, float) and math.isnan(value))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_may_hold_what_the_option_takes(name: str) -> None:
    """The limits are written once."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    if name not in ("steps", "decay_steps", "channels_last"):
        add_settings(parser, TrainSettings, [name])
        option = f"--{name.replace('_', '-')}"
        for word in ("-1", "0", "0.5", "1", "7", "1e300", "nan", "inf", str(10**30), "x"):
            try:
                taken = vars(parser.parse_args([f"{option}={word}"]))[name]
            except argparse.ArgumentError:
                continue
            taken = dict(taken) if name == "assigner_settings" else taken
            TrainSettings(**SETTINGS | {name: taken}).check()


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"train_images": 5}, "train_images: got 5, wanted a path"),
        ({"val_annotations": "\0"}, "val_annotations: got "),
        ({"train_annotations": "\ud800"}, "train_annotations: got "),
        ({"data_root": ["x"]}, "data_root: got "),
        ({"dataset": "imagenet"}, "dataset: got 'imagenet', wanted one of visdrone"),
        ({"dataset": {}}, "dataset: got "),
    ],
)
def test_a_config_of_no_data(data: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    path = config(json.dumps({"settings": SETTINGS, "data": data}), tmp_path)
    with pytest.raises(RunError) as caught:
        run_folder.read_config(path)
    assert wanted in str(caught.value)


def test_a_path_need_not_be_unicode(tmp_path: Path) -> None:
    data = {"train_images": os.fsdecode(b"/data/\xff")}
    path = config(json.dumps({"settings": SETTINGS, "data": data}), tmp_path)
    assert run_folder.read_config(path)[1] == data


def test_differences_are_told_in_short(tmp_path: Path) -> None:
    classes = [f"class {number}" for number in range(1203)]
    with pytest.raises(RunError, match=r"classes was \['class 0', .* and 1,198 more\]") as caught:
        run_folder.refuse_other_data("here", {"classes": classes}, {"classes": classes[1:]})
    assert len(str(caught.value)) < 400


LINE = {"step": 1, "total": 2.5}


@pytest.mark.parametrize(
    "line",
    [
        *("5", "null", "[]", '"x"', "{}", '{"step": null}', '{"step": "1"}', '{"step": 1.5}', DEEP),
        *('{"step": 1, "total": "x"}', '{"step": 1, "evaluation": 5}', '{"step": 1, "x": [1]}'),
        *('{"step": 1, "evaluation": {"AP": "x"}}', '{"step": true}'),
    ],
    ids=range(14),
)
def test_what_is_no_record_ends_the_log(line: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{line}\n{json.dumps(LINE)}\n")
    with run_folder.MetricsLog(tmp_path, 1, tensorboard=True):
        pass
    assert path.read_text() == json.dumps(LINE) + "\n"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def checkpoint() -> dict[str, Any]:
    """As a run of two classes writes it."""
    net = model()
    optimizer = sgd(net.parameters(), 0.01)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5}
    return {
        "model": net.state_dict(),
        "settings": dict(SETTINGS),
        "class_names": ["car", "ship"],
        "category_ids": [3, 4],
        "step": 4,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler | {"growth_interval": 2000, "_growth_tracker": 4},
        "state": dataclasses.asdict(State(4, 0.5, 3, 0, [{"total": 2.0, "grad_norm": math.nan}])),
    }


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets an entry of nested dicts and lists."""

    def change(content: dict[str, Any]) -> None:
        *outer, last = path
        inner: Any = content
        for key in outer:
            inner = inner[key]
        inner[last] = value

    return change


def test_category_ids_of_a_checkpoint_of_an_earlier_version(tmp_path: Path) -> None:
    content = checkpoint()
    checkpoints.save(tmp_path / "a.pt", content)
    assert checkpoints.load(tmp_path / "a.pt")["category_ids"] == [3, 4]
    del content["category_ids"]
    checkpoints.save(tmp_path / "a.pt", content)
    assert checkpoints.load(tmp_path / "a.pt")["category_ids"] == [1, 2]


GROUP = ("optimizer", "param_groups", 0)
WEIGHT = ("model", "0.weight")
CHANGES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (put("model", value=[]), "model: wanted tensors by name"),
    (put("model", value={}), "model: '0.bias': a tensor is missing"),
    (put("model", "x", value=torch.zeros(1)), "model: 'x': there is no such tensor"),
    (put("model", 5, value=torch.zeros(1)), "model: wanted tensors by name"),
    (
        put(*WEIGHT, value=torch.zeros(4, 3)),
        "model: 0.weight is [4, 3] of float32, wanted [4, 3, 1",
    ),
    (
        put(*WEIGHT, value=torch.zeros(4, 3, 1, 1).double()),
        "of float64, wanted [4, 3, 1, 1] of flo",
    ),
    (put(*WEIGHT, value=5), "model: wanted tensors by name"),
    (
        put(*WEIGHT, value=torch.full((4, 3, 1, 1), math.nan)),
        "model: 0.weight holds numbers that are not finite",
    ),
    (put("class_names", value=["car"]), "category_ids: got [3, 4], wanted one for each of 1"),
    (
        put("class_names", value=["car", "boat"]),
        "class_names: got ['car', 'boat'], wanted ['car', ",
    ),
    (put("class_names", value=[]), "class_names: got []"),
    (put("class_names", value="ab"), "class_names: got 'ab'"),
    (put("class_names", value=[1, 2]), "class_names: got [1, 2]"),
    (put("scale", value={"images": 10**400}), "scale: got {'images': 1000"),
    (put("scale", value={"objects": math.nan}), "scale: got {'objects': nan}, wanted numbers by"),
    (put("scale", value=[1]), "scale: got [1], wanted numbers by name"),
    (put("class_names", value=["a", "a"]), "class_names: got ['a', 'a'], wanted different ones"),
    (put("class_names", value=["a", "\x1b[2J"]), "wanted different ones without control charact"),
    (put("class_names", value=["a", ""]), "class_names: got ['a', ''], wanted different ones"),
    (put("category_ids", value=[3]), "category_ids: got [3], wanted one for each of 2"),
    (put("category_ids", value=[3, 3]), "category_ids: got [3, 3]"),
    (put("category_ids", value=5), "category_ids: got 5"),
    (put("category_ids", value=[1.5, 2]), "category_ids: got [1.5, 2]"),
    (put("step", value=-1), "step: got -1"),
    (put("step", value="4"), "step: got '4'"),
    (put("step", value=torch.ones(2)), "step: got tensor"),
    (put("settings", "lr", value=math.nan), "lr: got nan"),
    (put("settings", "colour", value="red"), "unknown setting 'colour'"),
    (put("settings", value=5), "its settings are a int"),
    (put("optimizer", value=5), "optimizer: wanted the state of SGD"),
    (put("optimizer", "param_groups", value=[]), "optimizer: wanted the state of SGD"),
    (put("optimizer", "state", value=[]), "optimizer: wanted states of 6 parameters by number"),
    (put("optimizer", "state", 99, value={}), "optimizer: wanted states of 6 parameters"),
    (put("optimizer", "state", 0, value=5), "optimizer: parameter 0: wanted a momentum_buffer"),
    (put("optimizer", "state", 0, "exp_avg", value=5), "optimizer: parameter 0: wanted a momentum"),
    (
        put("optimizer", "state", 0, "momentum_buffer", value=torch.zeros(1)),
        "parameter 0 is [1] of",
    ),
    (put("optimizer", "state", 0, "momentum_buffer", value="x"), "is 'x', wanted a tensor"),
    (put(*GROUP, "params", value=[0]), "optimizer: params: got [0], wanted [0, 1, 2, 3, 4, 5]"),
    (put(*GROUP, "momentum", value="x"), "optimizer: momentum: got 'x', wanted 0.9"),
    (put(*GROUP, "momentum", value=torch.ones(2)), "optimizer: momentum: got tensor"),
    (put(*GROUP, "lr", value=math.nan), "optimizer: lr: got nan"),
    (put("scaler", value=None), "scaler: got None"),
    (put("scaler", value={}), "scaler: scale: got None"),
    (put("scaler", "scale", value=0.0), "scaler: scale: got 0.0, wanted a number > 0"),
    (put("scaler", "growth_interval", value=math.inf), "scaler: growth_interval: got inf"),
    (put("state", value=[]), "state: got []"),
    (put("state", "colour", value=1), "state: got ['bad', 'best', 'best_step', 'colour'"),
    (put("state", "step", value=3), "state: step: got 3, wanted 4"),
    (put("state", "bad", value=-1), "state: bad: got -1"),
    (put("state", "best", value="x"), "state: best: got 'x'"),
    (put("state", "recent", value=[5]), "state: recent: wanted a list of numbers by name"),
    (put("state", "recent", value=[{"total": "x"}]), "state: recent: wanted a list of numbers"),
]


@pytest.mark.parametrize(("change", "wanted"), CHANGES, ids=range(len(CHANGES)))
def test_a_checkpoint_that_does_not_fit(
    change: Callable[[dict[str, Any]], None], wanted: str
) -> None:
    content = checkpoint()
    check_contents(content)
    check_fit(content, model(), ["car", "ship"], 9)
    change(content)
    with pytest.raises(ValueError) as caught:
        check_contents(content)
        check_fit(content, model(), ["car", "ship"], 9)
    assert wanted in str(caught.value) and len(str(caught.value)) < 700


def test_a_step_beyond_the_run() -> None:
    with pytest.raises(ValueError, match="state: step: got 4, wanted 4 of 3"):
        check_fit(checkpoint(), model(), ["car", "ship"], 3)


def test_the_checkpoint_before_is_used_and_nothing_is_written(tmp_path: Path) -> None:
    """Whole files of the run's own settings; what does not fit is seen with the model alone."""
    good = checkpoint()
    checkpoints.save(tmp_path / "previous.pt", good)
    seen_with_the_model = ("model: 0.weight is [4, 3] of", "parameter 0 is [1] of")
    for change, wanted in (c for c in CHANGES if c[1].startswith(seen_with_the_model)):
        bad = checkpoint() | {"step": 6}
        bad["state"]["step"] = 6
        change(bad)
        checkpoints.save(tmp_path / "last.pt", bad)
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        net = model()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        found, problems = checkpoints.load_last(tmp_path, SETTINGS, net, ["car", "ship"])
        assert found is not None and found["step"] == 4
        (problem,) = problems
        assert problem.startswith(f"{tmp_path / 'last.pt'}: does not fit the run: ")
        assert wanted in problem
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        kept = checkpoints.Checkpoints(tmp_path, found)
        kept.save_last(good | {"step": 5})
        assert checkpoints.load(tmp_path / "previous.pt")["step"] == 4  # not the bad one
        kept.save_last(good | {"step": 6})
        assert checkpoints.load(tmp_path / "previous.pt")["step"] == 5
        checkpoints.save(tmp_path / "previous.pt", good)


def test_kinds_of_tensors_that_no_run_writes(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    sparse = checkpoint()
    sparse["model"]["0.weight"] = torch.eye(3).to_sparse()
    torch.save(sparse | {"sha256": ""}, path)
    with pytest.raises(RunError, match=r"last\.pt: holds what no run writes"):
        checkpoints.load(path)
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RecursionError):
        checkpoints.digest(deep)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RunError, match=r"last\.pt: is no checkpoint that can be read"):
        checkpoints.load(path)
