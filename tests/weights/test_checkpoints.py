"""Training checkpoints as people have them, written by torch (tests/support/torch_checkpoints.py).

Weights called averaged are twice the raw ones, so the first kernel tells which were taken.
"""

import pathlib
import pickle

import numpy as np
import pytest

import weights
from errors import UserError
from tests.support import reference_weights
from tests.weights.test_door import CIFAR, abstract, write
from tests.weights.test_files import Call, torch_zip
from weights.checkpoints import state_dict
from weights.files import read_torch
from weights.torchvision import to_torch

FOLDER = pathlib.Path(__file__).parents[1] / "support" / "files" / "checkpoints"
FIELDS = CIFAR | {"width": 2, "shortcut": "A"}
RAW = {"conv1.weight": np.ones((1, 1, 3, 3)), "layer1.0.conv1.weight": np.ones((1, 1, 3, 3))}
AVERAGED = {name: 2 * array for name, array in RAW.items()}


def load(name):
    """`(factor, notes)`: 1 where the raw weights were taken, 2 where the averaged."""
    variables, notes = weights.load_weights(FOLDER / name, FIELDS, abstract(FIELDS))
    found = to_torch(variables)
    expected = reference_weights.make({key: a.shape for key, a in found.items()})
    factor = round(float((found["conv1.weight"] / expected["conv1.weight"]).mean()), 3)
    for key, array in found.items():
        np.testing.assert_allclose(array, factor * expected[key], rtol=1e-6, err_msg=key)
    return factor, notes


@pytest.mark.parametrize(
    ("name", "factor", "said"),
    [
        ("example.pth.tar", 1, []),
        ("reference.pth", 2, ["averaged weights 'model_ema'", "reference.pth#model.", "Namespace"]),
        ("reference.pth#model", 1, ["nothing of them was run: argparse.Namespace"]),
        ("timm.pth.tar", 2, ["averaged weights 'state_dict_ema'", "timm.pth.tar#state_dict."]),
        ("timm.pth.tar#state_dict", 1, ["Namespace"]),
        ("lightning.ckpt", 1, ["Namespace", "criterion.weight"]),
        ("module.pth", 1, ["nothing of them was run", "torch_resnet.ResNet"]),
    ],
)
def test_checkpoints_load_and_say_what_was_taken(name, factor, said):
    found, notes = load(name)
    assert found == factor
    assert all(any(words in note for note in notes) for words in said)
    assert bool(notes) == bool(said)


def test_a_part_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UserError, match=r"#best: .*it has 'model', 'model_ema'"):
        load("reference.pth#best")


def prefixed(arrays, prefix):
    return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.", "net.model.", ""],
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d,
        lambda d: {"model_state_dict": d, "epoch": 3},
        lambda d: {"checkpoint": {"model": {"state_dict": d}}},
        lambda d: {"best_acc1": np.ones(()), "network": d, "optimizer": {"state": {0: d}}},
        lambda d: [d],
    ],
)
def test_any_wrapper_and_any_prefix(wrap, prefix):
    found, notes = state_dict(wrap(prefixed(RAW, prefix)), "x.pth")
    assert found.keys() == RAW.keys() and notes == []


def test_a_head_beside_the_backbone_is_taken():
    head = {"head.fc.weight": np.ones((5, 8)), "head.fc.bias": np.ones(5)}
    found, _ = state_dict({"state_dict": prefixed(RAW, "backbone.") | head}, "x.pth")
    assert found.keys() == RAW.keys() | {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    "tree",
    [
        {"student": RAW, "teacher": AVERAGED},
        {"state_dict": prefixed(RAW, "net.") | prefixed(AVERAGED, "ema_net.module.")},
        prefixed(AVERAGED, "module.") | {"n_averaged": np.ones(())},
        {"swa": prefixed(AVERAGED, "module."), "net": RAW},
        {"model": RAW, "emaModel": AVERAGED},
        prefixed(RAW, "model.") | prefixed(AVERAGED, "m2.module.") | {"m2.n_averaged": np.ones(())},
    ],
)
def test_averaged_weights_are_known_by_their_names(tree):
    found, _ = state_dict(tree, "x.pth")
    assert found["conv1.weight"][0, 0, 0, 0] == 2


def test_averages_without_all_arrays_are_not_taken():
    lacking = {"conv1.weight": AVERAGED["conv1.weight"], "layer1.0.x": np.ones(1)}
    found, notes = state_dict({"net": RAW, "net_ema": lacking}, "x.pth")
    assert found["conv1.weight"][0, 0, 0, 0] == 1
    assert "'net_ema' lack layer1.0.conv1.weight" in notes[1]


def test_several_networks_are_named():
    tree = {"state_dict": prefixed(RAW, "module.q.") | prefixed(AVERAGED, "module.k.")}
    _, notes = state_dict(tree, "x.pth")
    assert notes == [
        "x.pth: the weights 'state_dict.q' are taken. For others give x.pth#state_dict.k."
    ]


def test_a_tree_without_arrays_says_what_it_holds():
    with pytest.raises(UserError, match=r"x\.pth: holds \['epoch'\].*torch\.save"):
        state_dict({"epoch": 3}, "x.pth")


def test_what_is_not_finite_is_named(tmp_path):
    bias = np.array([np.nan, np.inf, 0, 0, 0], np.float32)
    path = write(tmp_path / "x.safetensors", **{"fc.bias": bias})
    _, notes = weights.load_weights(path, CIFAR, abstract(CIFAR))
    assert "1 arrays are not finite: fc.bias (1 NaN, 1 Inf)" in notes[0]


@pytest.mark.parametrize("key", ["cls_token", "normalize.mean"])
def test_foreign_keys_are_named(key, tmp_path):
    path = write(tmp_path / "x.safetensors", **{key: np.ones((1, 3, 1, 1), np.float32)})
    with pytest.raises(UserError, match=rf"1 unknown: {key}.*without them") as error:
        weights.load_weights(path, CIFAR, abstract(CIFAR))
    assert "holds" not in str(error.value)


def test_an_object_beside_tensors_is_data_and_an_attack_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = (FOLDER / "reference.pth").read_bytes()
    for old, new in ((b"argparse\nNamespace", b"os\nsystem"), (b"argparse\nNamespace", b"Q\nrun")):
        (tmp_path / "x.pth").write_bytes(data.replace(old, new))
        if new.startswith(b"os"):
            with pytest.raises(UserError, match=r"would call os\.system"):
                read_torch(tmp_path / "x.pth")
        else:
            assert read_torch(tmp_path / "x.pth")["args"].of == "Q.run"
    evil = torch_zip(tmp_path / "evil.pth", pickle.dumps({"a": Call(open, "harmed", "w")}))
    with pytest.raises(UserError, match="would call"):
        read_torch(evil)
    assert not (tmp_path / "harmed").exists()
