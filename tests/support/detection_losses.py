"""torchvision's losses with small networks, and a little of each gradient, stored.

`python -m tests.support.detection_losses` (with torch, torchvision and scikit-learn) writes
tests/support/files/detection_losses.npz. The networks are `detection_reference`'s; everything that
may be sampled is.
"""

import pathlib
import tempfile

import jax
import numpy as np

import weights
from benchmarks.detection_losses import ALL, as_ours, made, their_losses
from detection import network
from detection.rpn import Limits
from detection.sampling import ANCHORS, REGIONS
from tests.support import detection_reference as reference
from tests.support.reference_weights import write_safetensors

FILE = pathlib.Path(__file__).parent / "files" / "detection_losses.npz"
NETWORKS = ("mask_rcnn", "c4", "fcn")
SHAPE = (96, 128)


def batch():
    """Two photographs with five objects and two."""
    return made(SHAPE, reference.CLASSES)


def opened(stored, name, folder):
    """A stored network that learns from all that there is, its variables and its torch file."""
    path = pathlib.Path(folder) / f"{name}.safetensors"
    write_safetensors(path, reference.state_dict(stored, name), {"format": "pt"})
    found, _ = network.open_weights(str(path))
    net = found.model
    net = net.clone(backbone=net.backbone.clone(frozen_bn=True))
    if name != "fcn":
        net = net.clone(
            training_limits=Limits(before=64, after=24),
            anchors=ANCHORS._replace(number=ALL),
            regions=REGIONS._replace(number=ALL, share=0.5),
        )
    return net, found.variables, weights.detector(str(path))


def summary(gradients):
    """Of each array its norm, and its product with fixed random numbers: `[arrays, 2]`."""
    random = np.random.default_rng(0)
    flat = [np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(gradients)]
    return np.array([(np.linalg.norm(x), x @ random.standard_normal(x.size)) for x in flat])


def their_numbers(stored, name, folder):
    """torchvision's losses and the summary of its gradients."""
    import torch

    model = reference.network(name)
    state = reference.state_dict(stored, name)
    model.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
    net, _, file = opened(stored, name, folder)
    losses, gradients = their_losses(model, batch(), net, frozen=True)
    theirs = as_ours(file, network.variable_shapes(net), model, gradients)
    return losses, summary(theirs)


def main():
    stored, found = np.load(reference.FILE), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            losses, gradients = their_numbers(stored, name, folder)
            print(name, losses, gradients.shape, flush=True)
            found |= {f"{name}/{key}": np.float64(value) for key, value in losses.items()}
            found[f"{name}/gradients"] = gradients
    np.savez_compressed(FILE, **found)
    print(FILE, FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
