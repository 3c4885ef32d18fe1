"""Class activation maps of image files: where the network sees a class (Zhou et al. 2016).

    python -m analysis.cam --workdir=runs/x photo.jpg folder/
    python -m analysis.cam --workdir=runs/x --endpoint=stage2 photo.jpg      # Grad-CAM
    python -m analysis.cam --weights=resnet50.safetensors photo.jpg          # no run is needed
    python -m analysis.cam --workdir=runs/x --mosaics=200                    # does it point right?

For every image and each of its most probable classes: an overlay PNG, the probability, and a box
around the largest region above 20 % of the map's maximum. With `--endpoint` the map is Grad-CAM's
(Selvaraju et al. 2017) at that endpoint. With `--mosaics`, four images of the run's data, of four
classes, make one of twice the side, and it is counted how often the largest value of a class's map
lies on the image of that class: 1 in 4 by chance.
"""

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import ImageDraw
from tqdm import tqdm

from analysis import subject
from data.class_names import readable
from data.decode import DecodeError
from data.decode import read as encoded
from data.normalization import normalize
from errors import UserError
from models.activation_map import class_activation_map
from models.ops.pool import max_pool_3x3
from predict import find_images, overlay, preprocess, save_picture
from run import command, files, plotting, result
from testing.opened_run import weights_alone

BOX_THRESHOLD = 0.2  # of the maximum; Zhou et al., section 3.2


def cam(model: nn.Module, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Class activation maps of the last stage.

    Args:
      model: a network of `models.create`.
      variables: its `params` and `batch_stats`.
      images: normalised, `[batch, height, width, channels]`.
      classes: int32 `[batch]`.

    Returns:
      float32 `[batch, h, w]`; the mean over positions plus the class's bias is its logit.
    """
    _, endpoints = model.apply(variables, images, train=False)
    last = subject.stages(endpoints)[-1]
    kernel = variables["params"]["head"]["kernel"]
    return class_activation_map(endpoints[last], kernel, classes)


def grad_cam(
    model: nn.Module, variables: Any, images: jax.Array, classes: jax.Array, endpoint: str
) -> jax.Array:
    """Grad-CAM at a spatial endpoint: ReLU of Σ_k a_k·f_k, a_k the mean gradient of the logit.

    Arguments as in `cam`; `endpoint` is 'stem' or 'stage1', 'stage2', ….

    Raises:
      UserError: the network has no such spatial endpoint.
    """
    features, gradients = endpoint_gradients(model, variables, images, classes, endpoint)
    weights = gradients.mean((1, 2))
    return nn.relu(jnp.einsum("bhwk,bk->bhw", features, weights))


def endpoint_gradients(
    model: nn.Module, variables: Any, images: jax.Array, classes: jax.Array, endpoint: str
) -> tuple[jax.Array, jax.Array]:
    """An endpoint's activation and the gradient of the class's logit with respect to it.

    Returns:
      two float32 arrays `[batch, h, w, channels]`.
    """
    shapes = jax.eval_shape(lambda: model.apply(variables, images, train=False)[1])
    known = subject.stages(shapes)
    if endpoint not in known:
        raise UserError(f"--endpoint={endpoint}: expected one of {', '.join(known)}.")
    following = known.index(endpoint) + 1
    if following == len(known):
        _, endpoints = model.apply(variables, images, train=False)
        features = endpoints[endpoint].astype(jnp.float32)
        kernel = variables["params"]["head"]["kernel"][:, classes].T
        # The head is linear in the pooled features: the gradient is the same at every position.
        share = 1 / (features.shape[1] * features.shape[2])
        return features, jnp.broadcast_to(share * kernel[:, None, None, :], features.shape)

    def logit(features):
        """Sum of the classes' logits when the network continues from these activations."""

        def enter(next_fun, args, kwargs, context):
            if context.module.name == known[following] and context.method_name == "__call__":
                args = (_pooled(model, endpoint, features), *args[1:])
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(enter):
            logits, _ = model.apply(variables, images, train=False)
        return jnp.take_along_axis(logits, classes[:, None], 1).sum()

    features = model.apply(variables, images, train=False)[1][endpoint]
    return features.astype(jnp.float32), jax.grad(logit)(features).astype(jnp.float32)


def _pooled(model, endpoint, features):
    """What the next stage takes in: the endpoint itself, or pooled behind an ImageNet stem."""
    if endpoint == "stem" and model.stem != "cifar":
        return max_pool_3x3(features, padded=model.stem_pool == "padded")
    return features


def box(
    activation_map: np.ndarray, height: int, width: int, threshold: float = BOX_THRESHOLD
) -> tuple[int, int, int, int]:
    """The box around the largest region above a share of the map's maximum.

    Args:
      activation_map: float `[h, w]`, enlarged bilinearly to the image first and scaled to 0 … 1.
      height, width: of the image in pixels.
      threshold: the share, from 0 to 1.

    Returns:
      `(left, top, right, bottom)` in pixels, right and bottom exclusive; the whole image when the
      map is constant.
    """
    if np.ptp(activation_map) == 0:  # enlarged, its values could differ in the last bit
        return (0, 0, width, height)
    smooth = cv2.resize(np.asarray(activation_map, np.float32), (width, height))
    low, high = smooth.min(), smooth.max()
    mask = np.asarray((smooth - low) / (high - low) > threshold, np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    left, top, box_width, box_height, _ = stats[1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])]
    return (int(left), int(top), int(left + box_width), int(top + box_height))


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, draws the maps and writes `cam.json`."""
    p = subject.parser("cam", __doc__, images=1000, several=False, required=False)
    p.add_argument("files", nargs="*", help="image files and folders")
    p.add_argument("--weights", default="", help="weight file or folder of one, without a run")
    p.add_argument("--top_k", type=command.positive, default=1, help="classes drawn per image")
    p.add_argument("--endpoint", help="Grad-CAM at this endpoint, e.g. stage2")
    p.add_argument("--mosaics", type=int, default=0, help="of four images of the run's data")
    args = p.parse_args(argv)
    if bool(args.weights) == bool(args.workdir) or not (args.files or args.mosaics):
        raise UserError("expected --workdir or --weights, and image files or --mosaics.")
    if args.weights and args.mosaics:
        raise UserError("--mosaics: made of the data of a run; give --workdir.")
    paths = find_images(args.files)
    [run] = subject.open_workdirs(args) or [weights_alone(args.weights)[0]]
    top_k = min(args.top_k, run.facts.num_classes)
    score = jax.jit(functools.partial(_score, run, args.endpoint, top_k))
    found = []
    for path in tqdm(paths, unit="image", disable=None):
        image = _read(path, run)
        labels, probabilities, maps = map(np.asarray, score(run.variables, image[None]))
        for rank, label in enumerate(labels):
            found.append(_draw(path, image, maps[rank], int(label), run.facts, args.out, rank))
            found[-1]["probability"] = float(probabilities[rank])
    pointed, figure = _mosaics(run, args) if args.mosaics else ({}, None)
    subject.publish(
        args,
        [run],
        "Class activation maps" + (f": Grad-CAM at {args.endpoint}" if args.endpoint else ""),
        [*([_table(found)] if found else []), *([_pointing_table(pointed)] if pointed else [])],
        figure,
        figures=[os.path.relpath(one["overlay"], args.out) for one in found],
        endpoint=args.endpoint or "last stage",
        maps=found,
        pointing=pointed,
    )


def mosaics_of_four(
    images: np.ndarray, labels: np.ndarray, number: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Images of twice the side, made of four of different classes.

    Args:
      images: `[n, height, width, channels]`, normalised: each tile as the network knows it.
      labels: int `[n]`.
      number: of mosaics.
      seed: of the choice.

    Returns:
      `[number, 2·height, 2·width, channels]`, and the classes `[number, 4]`, row by row.

    Raises:
      UserError: there are fewer than four classes.
    """
    if len(np.unique(labels)) < 4:
        raise UserError("--mosaics: expected images of at least four classes.")
    generator = np.random.default_rng(seed)
    made, classes = [], []
    for _ in range(number):
        four = generator.choice(np.unique(labels), 4, replace=False)
        chosen = [generator.choice(np.flatnonzero(labels == label)) for label in four]
        made.append(subject.mosaic(images[chosen], 2 * max(images.shape[1:3]))[0])
        classes.append(four)
    return np.stack(made), np.stack(classes)


def _mosaics(run, args):
    """How often maps point at the right tile, and a drawing of the first mosaics."""
    images, labels = subject.load_images(run, args.split, args.images)
    x = np.asarray(normalize(jnp.asarray(images), *run.facts.normalization))
    made, classes = mosaics_of_four(x, labels, args.mosaics)

    @jax.jit
    def maps(variables, images, classes):
        if args.endpoint:
            return grad_cam(run.model, variables, images, classes, args.endpoint)
        return cam(run.model, variables, images, classes)

    found = np.stack([maps(run.variables, made, classes[:, i]) for i in range(4)], 1)
    number, _, height, width = found.shape
    rows, columns = np.divmod(found.reshape(number, 4, -1).argmax(-1), width)
    tiles = 2 * (2 * rows >= height) + (2 * columns >= width)
    hits = (tiles == np.arange(4)).mean()
    pointed = {"mosaics": number, "hits": float(hits), "positions": f"{height}×{width}"}
    shown, _ = mosaics_of_four(images, labels, min(3, number))  # the same, not normalised
    return pointed, _drawn(shown, classes[:3], found[:3], run.facts)


def _drawn(mosaics, classes, maps, facts):
    figure, axes = plotting.pyplot().subplots(
        len(mosaics), 5, figsize=(12, 2.5 * len(mosaics)), layout="constrained", squeeze=False
    )
    names = readable(facts.label_names)
    for row, image, labels, found in zip(axes, mosaics, classes, maps, strict=True):
        shown = image if image.shape[-1] == 3 else image[..., 0]
        for axis, label, one in zip(row, (None, *labels), (None, *found), strict=True):
            axis.imshow(shown, cmap="gray")
            axis.axis("off")
            if one is not None:
                extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
                axis.imshow(one, cmap="jet", alpha=0.5, extent=extent, interpolation="bilinear")
                axis.set_title(f"map of {names[label]}", fontsize="small")
    return figure


def _pointing_table(pointed):
    row = [pointed["mosaics"], pointed["positions"], f"{100 * pointed['hits']:.1f}", "25.0"]
    columns = ["mosaics of 2 × 2 images", "positions of a map"]
    columns += ["largest value on the right image (%)", "by chance (%)"]
    return result.table("Do the maps point at their class?", columns, [row])


def _table(found):
    rows = [
        [one["image"], one["class"], f"{100 * one['probability']:.1f}", str(one["box"])]
        for one in found
    ]
    columns = ["image", "class", "probability (%)", "box (left, top, right, bottom)"]
    return result.table("", columns, rows)


def _score(run, endpoint, top_k, variables, images):
    model = run.model
    normalized = normalize(images, *run.facts.normalization)
    logits, _ = model.apply(variables, normalized, train=False)
    probabilities, labels = jax.lax.top_k(jax.nn.softmax(logits[0]), top_k)
    repeated = jnp.repeat(normalized, top_k, 0)
    if endpoint:
        maps = grad_cam(model, variables, repeated, labels, endpoint)
    else:
        maps = cam(model, variables, repeated, labels)
    return labels, probabilities, maps


def _read(path, run):
    try:
        return preprocess(encoded(files.at(path)), run.config, run.facts.image_shape)
    except (OSError, DecodeError) as error:
        raise UserError(f"{path}: not a readable image ({error}); expected e.g. a JPEG.") from error


def _draw(path, image, activation_map, label, facts, out, rank):
    height, width, _ = image.shape
    corners = box(activation_map, height, width)
    picture = overlay(image, activation_map)
    scale_x, scale_y = picture.width / width, picture.height / height
    left, top, right, bottom = corners
    ImageDraw.Draw(picture).rectangle(
        (left * scale_x, top * scale_y, right * scale_x - 1, bottom * scale_y - 1),
        outline="white",
        width=2,
    )
    folder, ending = files.at(out) / "cam", f".{rank + 1}.png"
    target = save_picture(picture, files.at(path), folder, ending, "choose another --out")
    names = readable(facts.label_names)
    return {
        "image": str(path),
        "class": names[label],
        "label": facts.label_names[label],
        "box": list(corners),
        "overlay": str(target),
    }


if __name__ == "__main__":
    sys.exit(command.run(main))
