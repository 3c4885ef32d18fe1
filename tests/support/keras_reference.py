"""Keras' ResNet50 with weights made from names, and its logits, stored.

`python -m tests.support.keras_reference` (in an environment with keras and jax) writes
tests/support/files/keras_reference.npz. The layers' names and shapes are written down here a second
time, so that the test can make the weight file without Keras.
"""

import pathlib

import numpy as np

from tests.support.reference_weights import random_of

BLOCKS = (3, 4, 6, 3)
CLASSES = 10
IMAGE_SHAPE = (1, 64, 64, 3)


def layers():
    """Layer name → variable → array, in Keras' layout."""
    made = _conv_bn("conv1", 7, 3, 64)
    c_in = 64
    for s, size in enumerate(BLOCKS):
        c = 64 * 2**s
        for b in range(1, size + 1):
            name = f"conv{s + 2}_block{b}"
            if b == 1:
                made |= _conv_bn(f"{name}_0", 1, c_in, 4 * c)
            made |= _conv_bn(f"{name}_1", 1, c_in, c)
            made |= _conv_bn(f"{name}_2", 3, c, c)
            made |= _conv_bn(f"{name}_3", 1, c, 4 * c)
            c_in = 4 * c
    return made | _named("predictions", kernel=(c_in, CLASSES), bias=(CLASSES,))


def _conv_bn(name, k, c_in, c_out):
    c = (c_out,)
    return _named(f"{name}_conv", kernel=(k, k, c_in, c_out), bias=c) | _named(
        f"{name}_bn", gamma=c, beta=c, moving_mean=c, moving_variance=c
    )


def _named(layer, **shapes):
    return {layer: {name: _array(layer, name, shape) for name, shape in shapes.items()}}


def _array(layer, name, shape):
    random = random_of(f"{layer}/{name}")
    if name == "kernel":
        values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    elif name == "moving_variance":
        # Small variances, so that the two epsilons give different numbers.
        values = (
            random.uniform(5e-5, 5e-4, shape) if layer == "conv1_bn" else 1 + random.rand(*shape)
        )
    elif name == "gamma":
        values = random.uniform(0.3, 0.7, shape) * (0.02 if layer == "conv1_bn" else 1)
    else:
        values = 0.1 * random.standard_normal(shape)
    return np.asarray(values, np.float32)


def images():
    """RGB images minus the mean, `[batch, height, width, 3]`."""
    return random_of("images").standard_normal(IMAGE_SHAPE).astype(np.float32)


def main():
    import keras

    model = keras.applications.ResNet50(
        weights=None, classes=CLASSES, input_shape=IMAGE_SHAPE[1:], classifier_activation=None
    )
    for layer, arrays in layers().items():
        model.get_layer(layer).set_weights(list(arrays.values()))
    outputs = {"logits": model.output}
    ends = {f"stage{s + 1}": f"conv{s + 2}_block{size}_out" for s, size in enumerate(BLOCKS)}
    outputs |= {key: model.get_layer(name).output for key, name in ends.items()}
    bgr = images()[..., ::-1]
    values = keras.Model(model.input, outputs).predict(bgr, verbose=0)
    path = pathlib.Path(__file__).parent / "files" / "keras_reference.npz"
    np.savez_compressed(
        path,
        **{
            k: np.asarray(v).reshape(-1)[:: 1 if k == "logits" else v.size // 199]
            for k, v in values.items()
        },
    )
    print(path, path.stat().st_size, "bytes, keras", keras.__version__)
    print({k: (v.shape, np.abs(v).max()) for k, v in values.items()})


if __name__ == "__main__":
    main()
