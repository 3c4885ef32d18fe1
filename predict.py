"""Classify image files with a trained network, or find objects in them.

    python predict.py --workdir=runs/digits-resnet20-seed0 image.jpg folder/ …
    python predict.py --weights=resnet50.safetensors image.jpg
    python predict.py --weights=maskrcnn.safetensors image.jpg   # draws boxes, names and masks

A folder stands for the images in it and below it, but for hidden ones. Images are decoded (jpeg,
png, webp, …), resized, cropped and normalised as the network was tested; for a weight file that
follows from its origin, and the output says what was taken. Exit status: 0 done; 1 an image could
not be read (it is named, the others are done) or another error that the message explains; 2 wrong
arguments.
"""

from run import interrupt

if __name__ == "__main__":
    interrupt.ends_at_once()

import concurrent.futures
import functools
import json
import os
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from data import transforms
from data.class_names import readable
from data.decode import MAX_PIXELS, DecodeError, decode
from data.decode import read as encoded
from data.folder import images_below
from data.normalization import normalize
from errors import UserError
from models.activation_map import class_activation_map
from run import command, files
from run.progress import tqdm
from run.workdir import Workdir
from testing.opened_run import OpenedRun, load, shorter_side, weights_alone

if typing.TYPE_CHECKING:
    from detection.network import Network

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
OVERLAY_SIDE = 224  # shorter side of an overlay; smaller images are enlarged to it
OVERLAY_OPACITY = 0.5


class Prediction(NamedTuple):
    """What the network says of one image.

    Attributes:
      path: the file.
      image: uint8 `[height, width, channels]`, as the network saw it; None when unreadable.
      error: why the file could not be read, or "".
      labels: int `[k]`, the most probable classes first.
      probabilities: float32 `[k]`.
      activation_map: float32 `[h, w]` of the first class, or None when not asked for.
    """

    path: Path
    image: np.ndarray | None
    error: str
    labels: np.ndarray
    probabilities: np.ndarray
    activation_map: np.ndarray | None = None


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Lists the files that `paths` stand for: files as given, folders' images in sorted order.

    Raises:
      UserError: a folder has no image in it, or cannot be listed.
    """
    found: list[Path] = []
    for path in map(files.at, paths):
        images = [path]
        if path.is_dir():
            images = images_below(path, SUFFIXES)
        if not images:
            raise UserError(f"{path}: no images in this folder; expected {', '.join(SUFFIXES)}.")
        found += images
    return found


def preprocess(data: bytes, config: ConfigDict, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Encoded bytes → the image that the network is tested on, before normalisation.

    Returns:
      uint8 `[height, width, channels]` of shape `image_shape`.
    """
    height, _, channels = image_shape
    resize = shorter_side(config, height)
    image = decode(data, config.data.max_pixels)
    image = transforms.resize_and_crop(image, resize=resize, size=height)
    if channels == 1:
        image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    return image


def predict(
    network: OpenedRun,
    paths: Sequence[str | os.PathLike],
    *,
    top_k: int = 5,
    batch_size: int = 32,
    with_maps: bool = False,
) -> Iterator[Prediction]:
    """Classifies image files, `batch_size` at once; yields a `Prediction` for each, in order.

    `top_k` classes per image, or all when there are fewer; `with_maps` with activation maps.
    """
    shape = network.facts.image_shape
    top_k = min(top_k, network.facts.num_classes)
    score = _compiled(network.model, top_k, with_maps)
    constants = jax.device_put((network.variables, network.facts.normalization))

    def read(path: str | os.PathLike) -> tuple[np.ndarray | None, str]:
        try:
            return preprocess(encoded(files.at(path)), network.config, shape), ""
        except (OSError, DecodeError) as error:
            return None, str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            images, errors = zip(*pool.map(read, part), strict=True)
            batch = np.zeros((batch_size, *shape), np.uint8)
            for i, image in enumerate(images):
                batch[i] = 0 if image is None else image
            results = map(np.asarray, score(*constants, batch))
            for path, image, error, *values in zip(part, images, errors, *results, strict=False):
                yield Prediction(files.at(path), image, error, *values)


@functools.lru_cache(maxsize=8)
def _compiled(model: nn.Module, top_k: int, with_maps: bool) -> Callable:
    @jax.jit
    def score(variables: Any, normalization: Any, images: jax.Array) -> tuple[jax.Array, ...]:
        normalized = normalize(images, *normalization)
        logits, endpoints = model.apply(variables, normalized, train=False)
        probabilities, labels = jax.lax.top_k(jax.nn.softmax(logits), top_k)
        if not with_maps:
            return labels, probabilities
        last = max(name for name in endpoints if name.startswith("stage"))
        kernel = variables["params"]["head"]["kernel"]
        return labels, probabilities, class_activation_map(endpoints[last], kernel, labels[:, 0])

    return score


def overlay(image: np.ndarray, activation_map: np.ndarray) -> Image.Image:
    """Draws a map over its image: blue where the class is not seen, red where it is.

    Args:
      image: uint8 `[height, width, channels]`.
      activation_map: float `[h, w]`, any range; its minimum and maximum become the scale's ends.
    """
    from matplotlib import colormaps

    height, width, _ = image.shape
    size = transforms.resized_shape(height, width, max(OVERLAY_SIDE, min(height, width)))[::-1]
    low, high = activation_map.min(), activation_map.max()
    scaled = (activation_map - low) / (high - low if high > low else 1)
    smooth = Image.fromarray(np.float32(scaled)).resize(size, Image.Resampling.BILINEAR)
    heat = Image.fromarray(np.uint8(255 * colormaps["jet"](np.asarray(smooth))[..., :3]))
    picture = Image.fromarray(np.repeat(image, 3, -1) if image.shape[-1] == 1 else image)
    return Image.blend(picture.resize(size, Image.Resampling.BILINEAR), heat, OVERLAY_OPACITY)


def save_picture(picture: Image.Image, path: Path, folder: Path, ending: str, advice: str) -> Path:
    """Writes a PNG made of an image file into `folder`; its name tells the image's path.

    Args:
      path: of the image file.
      ending: of the name, e.g. '.cam.png'.
      advice: what to do when it cannot be written.

    Raises:
      UserError: it cannot be written.
    """
    parts = [part for part in path.parts if part not in (os.sep, "..", ".")]
    target = folder / ("__".join(parts) + ending)
    with files.explained(target, advice), files.whole(target) as temporary:
        picture.save(temporary, "png")
    return target


def _as_dict(prediction: Prediction, label_names: Sequence[str]) -> dict[str, Any]:
    if prediction.error:
        return {"image": str(prediction.path), "error": prediction.error}
    names = readable(label_names)
    best = [
        {"name": names[i], "label": label_names[i], "probability": float(p)}
        for i, p in zip(prediction.labels, prediction.probabilities, strict=True)
    ]
    return {"image": str(prediction.path), "predictions": best}


def _classified(network: OpenedRun, paths: Sequence[Path], flags: Any) -> Iterator[dict[str, Any]]:
    """What is said of each image; writes activation maps."""
    network.config.data.max_pixels = flags.max_pixels or network.config.data.max_pixels
    cam_dir = files.at(flags.cam_dir or Workdir(flags.workdir).cam)
    predictions = predict(
        network, paths, top_k=flags.top_k, batch_size=flags.batch_size, with_maps=flags.cam
    )
    for prediction in predictions:
        entry = _as_dict(prediction, network.facts.label_names)
        if flags.cam and not prediction.error:
            picture = overlay(prediction.image, prediction.activation_map)
            where = (prediction.path, cam_dir, ".cam.png", "choose another --cam_dir")
            entry["cam"] = str(save_picture(picture, *where))
        yield entry


def _of_runs(config: ConfigDict, flags: Any) -> "Network":
    """The network of a workdir that does not classify; of a detector as appendix B tests it."""
    from detection.network import of_run
    from testing.fitting import check_fits
    from training import task

    config.eval.update(refine_boxes=flags.refine_boxes, ensemble=tuple(flags.ensemble))
    config.eval.update(protocol="multiscale" if flags.scales else "center", scales=flags.scales)
    task.check(config)
    folders = flags.workdir, *flags.ensemble
    runs = [task.opened(folder, config.task, flags.which) for folder in folders]
    for one in runs:
        check_fits(one, runs[0], runs[0].facts)
    model, variables = task.as_one(config, runs)
    return of_run(runs[0])._replace(model=model, variables=variables)


def _detected(network: "Network", paths: Sequence[Path], flags: Any) -> Iterator[dict[str, Any]]:
    """What is found in each image; writes pictures of it."""
    from detection.report import described

    folder, limit = files.at(flags.picture_dir), flags.max_pixels or MAX_PIXELS
    for path in paths:
        try:
            image = decode(encoded(path), limit)
            entry, picture = described(network, image, flags.min_score)
        except (OSError, DecodeError) as error:
            yield {"image": str(path), "error": str(error)}
            continue
        where = (path, folder, ".detected.png", "choose another --picture_dir")
        yield {"image": str(path), **entry, "picture": str(save_picture(picture, *where))}


def _table(entry: dict[str, Any]) -> str:
    written = entry.get("cam") or entry.get("picture")
    lines = [entry["image"] + (f"  → {written}" if written else "")]
    for found in (*entry.get("predictions", ()), *entry.get("classes", ())):
        share = found["probability"] if "probability" in found else found["share"]
        lines.append(f"  {100 * share:6.2f} %  {found['name']}")
    for found in entry.get("detections", ()):
        box = "({:.0f}, {:.0f}) – ({:.0f}, {:.0f})".format(*found["box"])
        lines.append(f"  {100 * found['score']:6.2f} %  {found['name']}  {box}")
    return "\n".join(map(command.printable, lines))


def _json(entries: list[dict[str, Any]]) -> str:
    """JSON in which whatever a terminal must not have is an escape of JSON's."""
    text = json.dumps(entries, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _sides(text: str) -> tuple[int, ...]:
    return tuple(map(command.positive, text.split(",")))


def main(argv: Sequence[str] | None) -> int:
    """Runs the command; returns the exit status: 1 when an image could not be read."""
    parser = command.Parser("python predict.py", __doc__)
    parser.add_argument("images", nargs="+", help="image files and folders")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", default="", help="folder of the run")
    source.add_argument("--weights", default="", help="weight file or folder of one, without a run")
    parser.add_argument("--top_k", type=command.positive, default=5, help="classes per image (5)")
    parser.add_argument("--batch_size", type=command.positive, default=32, help="at once (32)")
    limit = "pixels of an image (data.max_pixels of the run)"
    parser.add_argument("--max_pixels", type=command.positive, default=0, help=limit)
    parser.add_argument("--json", action="store_true", help="a JSON list instead of a table")
    parser.add_argument("--cam", action="store_true", help="write class activation maps")
    parser.add_argument("--cam_dir", default="", help="where (WORKDIR/cam, or cam)")
    parser.add_argument("--picture_dir", default="detected", help="where detectors draw (detected)")
    parser.add_argument("--min_score", type=command.share, default=0.5, help="objects' (0.5)")
    parser.add_argument("--refine_boxes", action="store_true", help="detectors: appendix B's")
    sides = "detectors: shorter sides of the image in testing, e.g. 600,800"
    parser.add_argument("--scales", type=_sides, default=(), help=sides)
    others = "detectors: a further workdir that is asked, too; can be repeated"
    parser.add_argument("--ensemble", action="append", default=[], help=others)
    parser.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint")
    flags = parser.parse_args(argv)
    paths = find_images(flags.images)
    found, file, learned = None, None, "weights from elsewhere"
    if not flags.weights:
        config = Workdir(flags.workdir).read_config()
        learned = config.task
    boosts = flags.refine_boxes or flags.scales or flags.ensemble
    if boosts and learned not in ("detection", "localization"):
        raise UserError(
            "--refine_boxes, --scales and --ensemble are of testing a detector that was trained "
            f"here (--workdir), not of {learned}; leave them."
        )
    if flags.weights:
        import weights  # the readers of foreign files
        from detection.network import open_weights

        file = weights.opened(flags.weights)
        found = open_weights(file)
    elif learned != "classification":
        found = _of_runs(config, flags), ""
    of_image: Iterator[dict[str, Any]]
    if found:
        detector, said = found
        if flags.cam:
            raise UserError("--cam: a detector or segmenter has no class activation map; leave it.")
        of_image = _detected(detector, paths, flags)
    else:
        network, said = weights_alone(file) if file else (load(flags.workdir, flags.which), "")
        of_image = _classified(network, paths, flags)
    if said:
        print(command.printable(said), file=sys.stderr if flags.json else sys.stdout)
    entries, failed = [], 0
    for entry in tqdm(of_image, total=len(paths), unit="image", disable=None):
        entries.append(entry)
        if "error" in entry:
            failed += 1
            unread = f"{entry['image']}: {entry['error']}"
            tqdm.write(command.printable(unread), file=sys.stderr)
        elif not flags.json:
            tqdm.write(_table(entry))
    if flags.json:
        print(_json(entries))
    if failed:
        print(f"{failed} of {len(paths)} images could not be read.", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(command.run(main))
