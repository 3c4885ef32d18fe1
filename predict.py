"""Classify image files with a trained network.

    python predict.py --workdir=runs/digits-resnet20-seed0 image.jpg folder/ …

A folder stands for the images in it and below it. Images are decoded (jpeg, png, webp, …), resized,
cropped and normalised as the network was tested. Exit status: 0 done; 1 an image could not be read
(it is named, the others are done) or another error that the message explains; 2 wrong arguments.
"""

import concurrent.futures
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from data import transforms
from data.class_names import readable
from data.decode import DecodeError, decode
from data.normalization import normalize
from errors import UserError
from models.activation_map import class_activation_map
from run import command
from run.workdir import Workdir
from testing import opened_run

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
OVERLAY_SIDE = 224  # shorter side of an overlay; smaller images are enlarged to it
OVERLAY_OPACITY = 0.5


class Prediction(NamedTuple):
    """What the network says of one image.

    Attributes:
      path: the file.
      image: uint8 `[height, width, channels]`, as the network saw it; None when unreadable.
      labels: int `[k]`, the most probable classes first.
      probabilities: float32 `[k]`.
      activation_map: float32 `[h, w]` of the first class, or None when not asked for.
      error: why the file could not be read, or "".
    """

    path: Path
    image: np.ndarray | None
    labels: np.ndarray
    probabilities: np.ndarray
    activation_map: np.ndarray | None
    error: str = ""


def find_images(paths):
    """Lists the files that `paths` stand for: files as given, folders' images in sorted order.

    Raises:
      UserError: a path does not exist, or a folder has no image in it.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(
                    f"{path}: no images in this folder; expected {', '.join(SUFFIXES)}."
                )
            found += inside
        else:
            found.append(path)
    return found


def preprocess(data, config, image_shape):
    """Encoded bytes → the image that the network is tested on, before normalisation.

    Small images (device-resident sets) are scaled to the training images' size; others have the
    testing protocol's shorter side and central crop.

    Returns:
      uint8 `[height, width, channels]` of shape `image_shape`.
    """
    height, _, channels = image_shape
    resize = height if config.data.resident else max(height, config.eval.resize)
    image = transforms.resize_and_crop(decode(data), resize=resize, size=height)
    if channels == 1:
        image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    return image


def predict(network, paths, *, top_k=5, batch_size=32, with_maps=False):
    """Classifies image files, batch by batch.

    Args:
      network: a `testing.opened_run.OpenedRun`.
      paths: files.
      top_k: classes per image; all when there are fewer.
      batch_size: images computed at once.
      with_maps: compute class activation maps too.

    Yields:
      one `Prediction` per path, in order.
    """
    shape = network.facts.image_shape
    top_k = min(top_k, network.facts.num_classes)
    score = _compiled(network.model, top_k, with_maps)
    constants = jax.device_put((network.variables, network.facts.normalization))

    def load(path):
        try:
            return preprocess(Path(path).read_bytes(), network.config, shape), ""
        except (OSError, DecodeError) as error:
            return None, str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            images, errors = zip(*pool.map(load, part), strict=True)
            batch = np.zeros((batch_size, *shape), np.uint8)
            for i, image in enumerate(images):
                batch[i] = 0 if image is None else image
            results = [
                np.asarray(x) if x is not None else [None] * batch_size
                for x in score(*constants, batch)
            ]
            for path, image, error, *values in zip(part, images, errors, *results, strict=False):
                yield Prediction(Path(path), image, *values, error=error)


@functools.lru_cache(maxsize=8)
def _compiled(model, top_k, with_maps):
    @jax.jit
    def score(variables, normalization, images):
        normalized = normalize(images, *normalization)
        logits, endpoints = model.apply(variables, normalized, train=False)
        probabilities, labels = jax.lax.top_k(jax.nn.softmax(logits), top_k)
        last = max(name for name in endpoints if name.startswith("stage"))
        maps = None
        if with_maps:
            kernel = variables["params"]["head"]["kernel"]
            maps = class_activation_map(endpoints[last], kernel, labels[:, 0])
        return labels, probabilities, maps

    return score


def overlay(image, activation_map):
    """Draws a map over its image: blue where the class is not seen, red where it is.

    Args:
      image: uint8 `[height, width, channels]`.
      activation_map: float `[h, w]`, any range; its minimum and maximum become the scale's ends.

    Returns:
      a PIL image.
    """
    from matplotlib import colormaps

    shape = transforms.resized_shape(*image.shape[:2], max(OVERLAY_SIDE, min(image.shape[:2])))
    size = shape[::-1]
    low, high = activation_map.min(), activation_map.max()
    scaled = (activation_map - low) / (high - low if high > low else 1)
    smooth = Image.fromarray(np.float32(scaled)).resize(size, Image.Resampling.BILINEAR)
    heat = Image.fromarray(np.uint8(255 * colormaps["jet"](np.asarray(smooth))[..., :3]))
    picture = Image.fromarray(np.repeat(image, 3, -1) if image.shape[-1] == 1 else image)
    return Image.blend(picture.resize(size, Image.Resampling.BILINEAR), heat, OVERLAY_OPACITY)


def save_overlay(prediction, folder):
    """Writes the overlay of a prediction into `folder`; the name tells the image's path."""
    parts = [part for part in prediction.path.parts if part not in (os.sep, "..", ".")]
    target = folder / ("__".join(parts) + ".cam.png")
    picture = overlay(prediction.image, prediction.activation_map)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error}); choose another --cam_dir."
        ) from error
    return target


def _as_dict(prediction, names, label_names, cam):
    if prediction.error:
        return {"image": str(prediction.path), "error": prediction.error}
    found = {
        "image": str(prediction.path),
        "predictions": [
            {"name": names[i], "label": label_names[i], "probability": float(p)}
            for i, p in zip(prediction.labels, prediction.probabilities, strict=True)
        ],
    }
    return found | ({"cam": str(cam)} if cam else {})


def _table(prediction, names, cam):
    lines = [str(prediction.path) + (f"  → {cam}" if cam else "")]
    for i, p in zip(prediction.labels, prediction.probabilities, strict=True):
        lines.append(f"  {100 * p:6.2f} %  {names[i]}")
    return "\n".join(lines)


def _parser():
    parser = command.Parser("python predict.py", __doc__)
    parser.add_argument("images", nargs="+", help="image files and folders")
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--top_k", type=command.positive, default=5, help="classes per image (5)")
    parser.add_argument("--batch_size", type=command.positive, default=32, help="images at once (32)")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of a table")
    parser.add_argument("--cam", action="store_true", help="write class activation maps")
    parser.add_argument("--cam_dir", default="", help="where (WORKDIR/cam)")
    parser.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint")
    return parser


def main(argv: Sequence[str] | None) -> int:
    """Runs the command; returns the exit status: 1 when an image could not be read."""
    flags = _parser().parse_args(argv)
    paths = find_images(flags.images)
    network = opened_run.load(flags.workdir, which=flags.which)
    label_names, names = network.facts.label_names, readable(network.facts.label_names)
    cam_dir = Path(flags.cam_dir or Workdir(flags.workdir).cam)
    found, failed = [], 0
    predictions = predict(
        network, paths, top_k=flags.top_k, batch_size=flags.batch_size, with_maps=flags.cam
    )
    for prediction in tqdm(predictions, total=len(paths), unit="image", disable=None):
        cam = None
        if prediction.error:
            failed += 1
            tqdm.write(f"{prediction.path}: {prediction.error}", file=sys.stderr)
        elif flags.cam:
            cam = save_overlay(prediction, cam_dir)
        if flags.json:
            found.append(_as_dict(prediction, names, label_names, cam))
        elif not prediction.error:
            tqdm.write(_table(prediction, names, cam))
    if flags.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    if failed:
        print(f"{failed} of {len(paths)} images could not be read.", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(command.run(main))
