"""Class activation maps of image files: where the network sees a class (Zhou et al. 2016).

    python -m analysis.cam --workdir=runs/x photo.jpg folder/
    python -m analysis.cam --workdir=runs/x --endpoint=stage2 photo.jpg      # Grad-CAM

For every image and each of its most probable classes: an overlay PNG, the probability, and a box
around the largest region above 20 % of the map's maximum. With `--endpoint` the map is Grad-CAM's
(Selvaraju et al. 2017) at that endpoint.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
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
from data.normalization import normalize
from errors import UserError
from models.activation_map import class_activation_map
from models.ops.pool import max_pool_3x3
from predict import find_images, overlay, preprocess, save_picture
from run import command

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


def box(activation_map: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The box around the largest region above 20 % of the map's maximum.

    Args:
      activation_map: float `[h, w]`, enlarged bilinearly to the image first and scaled to 0 … 1.
      height, width: of the image in pixels.

    Returns:
      `(left, top, right, bottom)` in pixels, right and bottom exclusive; the whole image when the
      map is constant.
    """
    smooth = cv2.resize(np.asarray(activation_map, np.float32), (width, height))
    low, high = smooth.min(), smooth.max()
    if high <= low:
        return (0, 0, width, height)
    mask = np.asarray((smooth - low) / (high - low) > BOX_THRESHOLD, np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    left, top, box_width, box_height, _ = stats[1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])]
    return (int(left), int(top), int(left + box_width), int(top + box_height))


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, draws the maps and writes `cam.json`."""
    p = subject.parser("cam", __doc__)
    p.add_argument("images", nargs="+", help="image files and folders")
    p.add_argument("--top_k", type=command.positive, default=1, help="classes drawn per image")
    p.add_argument("--endpoint", help="Grad-CAM at this endpoint, e.g. stage2")
    args = p.parse_args(argv)
    paths = find_images(args.images)
    run, out = subject.open_workdir(args)
    top_k = min(args.top_k, run.facts.num_classes)
    score = jax.jit(functools.partial(_score, run, args.endpoint, top_k))
    found = []
    for path in tqdm(paths, unit="image", disable=None):
        image = _read(path, run)
        labels, probabilities, maps = map(np.asarray, score(run.variables, image[None]))
        for rank, label in enumerate(labels):
            found.append(_draw(path, image, maps[rank], int(label), run.facts, out, rank))
            found[-1]["probability"] = float(probabilities[rank])
    path = subject.write(
        out / "cam.json", args, {"endpoint": args.endpoint or "last stage", "maps": found}
    )
    for one in found:
        print(
            f"{one['image']}: {100 * one['probability']:.1f} % {one['class']}, "
            f"box {one['box']} → {one['overlay']}"
        )
    print(f"All of it: {path}")


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
        return preprocess(Path(path).read_bytes(), run.config, run.facts.image_shape)
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
    folder, ending = Path(out) / "cam", f".{rank + 1}.png"
    target = save_picture(picture, Path(path), folder, ending, "choose another --out")
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
