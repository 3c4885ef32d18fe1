"""Weights from and to torch, proven against an independent torch network's stored numbers."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import weights
from tests.support import reference_weights
from tests.support.reference_weights import write_safetensors
from weights.torchvision import from_torch, to_torch, torch_name

REFERENCE = np.load(pathlib.Path(__file__).parents[1] / "support" / "files" / "torch_reference.npz")
CASES = reference_weights.CASES


def network(case, **fields):
    return models.create(case.fields | fields, case.classes)


def shapes(case, **fields):
    """Variables of the case's network as shapes."""
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(
        lambda: network(case, **fields).init(jax.random.key(0), images, train=False)
    )


def torch_state(case):
    """The state dict that the torch network of the case had."""
    zeros = jax.tree.map(lambda s: np.zeros(s.shape), shapes(case))
    return reference_weights.make({k: v.shape for k, v in to_torch(zeros).items()})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Name of a case → its variables, read from a file."""
    folder = tmp_path_factory.mktemp("weights")

    def load(name, **fields):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            write_safetensors(path, torch_state(CASES[name]), {"format": "pt"})
        case = CASES[name]
        variables, _ = weights.load_weights(path, case.fields | fields, shapes(case, **fields))
        return variables

    return load


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits_and_every_stage_equal_torch(name, loaded):
    case = CASES[name]
    variables = loaded(name)
    apply = jax.jit(lambda v, x: network(case).apply(v, x, train=False))
    logits, endpoints = apply(variables, reference_weights.images(case))
    np.testing.assert_allclose(logits, REFERENCE[f"{name}/logits"], rtol=0, atol=1e-4)
    stages = [key for key in endpoints if key.startswith(("stem", "stage"))]
    assert len(stages) == (4 if case.cifar else 5)
    for key in stages:
        np.testing.assert_allclose(
            reference_weights.sample(endpoints[key]),
            REFERENCE[f"{name}/{key}"],
            rtol=0,
            atol=1e-4,
            err_msg=key,
        )


@pytest.mark.slow
def test_where_a_bottleneck_strides_is_seen(loaded):
    """The same weights with the other stride placement are another network."""
    case = CASES["resnet50_v1"]
    variables = loaded("resnet50_v1")
    logits, _ = network(case, downsample_in="3x3").apply(
        variables, reference_weights.images(case), train=False
    )
    assert np.abs(logits - REFERENCE["resnet50_v1/logits"]).max() > 1e-2


@pytest.mark.slow
def test_running_averages_follow_torch_up_to_its_unbiased_variance(loaded):
    case = CASES["cifar20"]
    variables = loaded("cifar20")
    images = reference_weights.images(case)
    _, updated = network(case).apply(variables, images, train=True, mutable=["batch_stats"])
    ours = to_torch({"params": {}, **updated})
    before = torch_state(case)
    positions = {"bn1": images[..., 0].size, "layer3": images.shape[0] * 8 * 8}
    for key in reference_weights.TRAINED:
        theirs = REFERENCE[f"cifar20/trained/{key}"]
        if key.endswith("var"):
            n = positions[key.split(".")[0]]
            theirs = 0.9 * before[key] + (theirs - 0.9 * before[key]) * (n - 1) / n
        np.testing.assert_allclose(ours[key], theirs, rtol=0, atol=2e-5, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar20"])
def test_to_torch_gives_torchvisions_keys_and_the_same_numbers(name, loaded):
    state = to_torch(loaded(name))
    assert sorted(state) == list(REFERENCE[f"{name}/keys"])
    expected = torch_state(CASES[name])
    for key, array in state.items():
        assert array.dtype == (np.int64 if key.endswith("tracked") else np.float32)
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


@pytest.mark.slow
def test_a_scanned_network_loads_and_writes_the_same_weights(loaded):
    plain, scanned = loaded("cifar20"), loaded("cifar20", scan_blocks=True)
    assert "blocks" in scanned["params"]["stage1"]
    for key, array in to_torch(scanned).items():
        np.testing.assert_array_equal(array, to_torch(plain)[key])


def test_layers_that_torchvision_lacks_survive_the_round_trip():
    case = reference_weights.Case(8, 4, 4, (1, 8, 8, 3), cifar=True)
    fields = {"preactivation": True}
    variables = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes(case, **fields))
    state = to_torch(variables)
    assert "final_bn.running_mean" in state
    back = {name: tensor.array.shape for name, tensor in from_torch(state).items()}
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }
    assert back == expected


def test_names_map_both_ways():
    assert torch_name("params/stage2/block1/shortcut_conv/kernel") == "layer2.0.downsample.0.weight"
    assert torch_name("batch_stats/stem_bn/var") == "bn1.running_var"
    assert torch_name("params/head/bias") == "fc.bias"


@pytest.mark.parametrize("name", ["resnet50_v1", "cifar20"])
def test_live_torch_loads_ours_strictly_and_agrees(name, loaded, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    from tests.support.torch_resnet import build, images

    case = CASES[name]
    write_safetensors(tmp_path / "ours.safetensors", to_torch(loaded(name)), {"format": "pt"})
    peer = build(case)
    peer.load_state_dict(load_file(tmp_path / "ours.safetensors"), strict=True)
    with torch.no_grad():
        expected, _ = peer(images(case))
    logits, _ = network(case).apply(loaded(name), reference_weights.images(case), train=False)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)
