"""Where is the object of its class? ILSVRC's localization error of class activation maps.

    python -m analysis.localization --workdir=runs/x                     # Data/CLS-LOC's boxes
    python -m analysis.localization --workdir=runs/x --boxes=Annotations/CLS-LOC --split=validation

A network that was trained on classes alone says of each image the classes that it takes for the
five most probable, and of each a box around the largest region of its activation map (Zhou et al.
2016). The error is the share of images whose class is not among them with a box that overlaps one
of the image's by an IoU of at least 0.5; and, as if the class were known, of boxes of the true
class alone. Classes are those of the central crop, as in the test; boxes are from the whole image,
stretched to that size. Boxes are ILSVRC's XML files beside an image folder, or those of
`single_scenes`.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from analysis import subject
from analysis.cam import BOX_THRESHOLD, box
from data import stream, transforms
from data.class_names import readable
from data.decode import decode
from data.feed import Batch
from data.normalization import normalize
from detection import ilsvrc
from detection.annotated import Annotated
from detection.localization import NAMED, Located, localization_errors
from errors import UserError
from models.activation_map import class_activation_map
from run import command, files, plotting, result
from testing.opened_run import OpenedRun, shorter_side

SHOWN = 12  # images in the picture


def truth_of(run: OpenedRun, data: Any, split: str, boxes: str) -> Sequence[Annotated]:
    """The images of a split with the boxes of their class, in the data's order.

    Args:
      data: of `subject.open_data`.
      boxes: folder of ILSVRC's XML files; '' for that of the genuine layout.

    Raises:
      UserError: the data have no boxes, or these do not fit the images.
    """
    kind, _, root = run.config.dataset.partition(":")
    if kind == "single_scenes":
        return data.annotated(split)
    if kind != "folder":
        raise UserError(
            f"{run.workdir}: dataset={run.config.dataset!r} has no boxes; expected a run on an "
            "image folder with ILSVRC's XML files, or on single_scenes."
        )
    path = files.at(root).expanduser()
    return ilsvrc.with_boxes(
        path,
        data.source(split).names,
        run.facts.label_names,
        ilsvrc.boxes_folder(path, boxes),
        run.config.data.max_pixels,
    )


def _batches(run: OpenedRun, data: Any, split: str, truth: Sequence[Annotated]) -> Iterator[Batch]:
    """Batches of a split whose `image` has two views, `[batch, 2, height, width, 3]`."""
    if run.config.data.resident:
        for batch in data.evaluation(split):
            yield batch | {"image": np.stack([batch["image"]] * 2, 1)}
        return
    size, limit = run.facts.image_shape[0], run.config.data.max_pixels

    def row(one, record):
        image = one._replace(image=decode(record.image, limit)).decoded().image
        crop = transforms.resize_and_crop(image, resize=shorter_side(run.config, size), size=size)
        whole = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        return {"image": np.stack([crop, np.asarray(whole)]), "label": record.label}

    def blank(step, rows):
        images = np.zeros((rows, 2, size, size, 3), np.uint8)
        return {"image": images, "label": np.zeros(rows, np.int32)}

    found = stream.batches(
        data.source(split),
        lambda position: (position, functools.partial(row, truth[position])),
        *(len(truth), 0, blank),
        **data.host_options(run.config.batch_size),
    )
    yield from data.corrupt.watch(split, found)


@functools.lru_cache(maxsize=2)
def _compiled(model: Any) -> Callable[..., tuple[jax.Array, jax.Array]]:
    @jax.jit
    def find(variables: Any, normalization: Any, views: jax.Array, labels: jax.Array) -> Any:
        crop, whole = (normalize(views[:, i], *normalization) for i in range(2))
        logits, _ = model.apply(variables, crop, train=False)
        _, classes = jax.lax.top_k(logits, min(NAMED, logits.shape[-1]))
        _, endpoints = model.apply(variables, whole, train=False)
        features = endpoints[subject.stages(endpoints)[-1]]
        asked = jnp.concatenate([labels[:, None], classes], 1)
        maps = jax.vmap(class_activation_map, (None, None, 1), 1)
        return classes, maps(features, variables["params"]["head"]["kernel"], asked)

    return find


def locate(
    run: OpenedRun, data: Any, split: str, truth: Sequence[Annotated], threshold: float
) -> dict[int, Located]:
    """Classes and boxes of each image that is not corrupt, by its place in the split."""
    found, start, find = {}, 0, _compiled(run.model)
    for batch in _batches(run, data, split, truth):
        constants = run.variables, run.facts.normalization
        classes, maps = map(np.asarray, find(*constants, batch["image"], batch["label"]))
        if not np.isfinite(maps[batch["valid"]]).all():
            raise UserError(
                f"{run.workdir}: activation maps are not finite; its weights are damaged."
            )
        for i in np.flatnonzero(batch["valid"]).tolist():
            height, width = truth[start + i].size
            boxes = np.array([box(one, height, width, threshold) for one in maps[i]])
            found[start + i] = Located(boxes[0], classes[i], boxes[1:])
        start += len(batch["valid"])
    return found


def draw(truth: Sequence[Annotated], found: Sequence[Located], label_names: Sequence[str]) -> Any:
    """A figure of images with their boxes: white; ours of the true class: red."""
    pyplot, names = plotting.pyplot(), readable(label_names)
    figure, axes = pyplot.subplots(2, SHOWN // 2, figsize=(12, 4.5), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, one, ours in zip(axes.flat, truth, found, strict=False):
        axis.imshow(one.decoded().image)
        boxes = [(box, "white") for box in one.boxes] + [(ours.own, "red")]
        for (left, top, right, bottom), colour in boxes:
            place = {"xy": (left - 0.5, top - 0.5), "width": right - left, "height": bottom - top}
            axis.add_patch(pyplot.Rectangle(**place, fill=False, edgecolor=colour, linewidth=1.5))
        taken, own = names[ours.classes[0]], names[one.labels[0] - 1]
        said = own if taken == own else f"{own}, taken for {taken}"
        axis.set_title(said.replace("$", r"\$"), fontsize="small")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and publishes."""
    p = subject.parser("localization", __doc__, several=False)
    p.add_argument("--split", choices=subject.SPLITS, default="test", help="images to test")
    p.add_argument("--boxes", default="", help="folder like ILSVRC/Annotations/CLS-LOC")
    p.add_argument(
        "--threshold", type=float, default=BOX_THRESHOLD, help="of a map's maximum, from 0 to 1"
    )
    args = p.parse_args(argv)
    if not 0 <= args.threshold < 1:
        raise UserError(f"--threshold={args.threshold}: expected a share from 0 to below 1.")
    [run] = subject.open_workdirs(args)
    data = subject.open_data(run, args.split)
    truth = truth_of(run, data, args.split, args.boxes)
    found = locate(run, data, args.split, truth, args.threshold)
    if not found:
        raise UserError(f"{run.workdir}: its data has no {args.split!r} images; choose --split.")
    there = [truth[i] for i in found]
    errors = localization_errors(
        list(found.values()), [one.labels[0] - 1 for one in there], [one.boxes for one in there]
    )
    rows = [
        ["box of the true class", errors["localization_error"], None],
        *[
            [f"{k} predicted", errors[f"top{k}_localization_error"], errors[f"top{k}_class_error"]]
            for k in (1, NAMED)
        ],
    ]
    columns = [f"classes, of {len(found)} images", "localization error (%)", "class alone (%)"]
    subject.publish(
        args,
        [run],
        "Localization by class activation maps",
        [result.table("", columns, rows)],
        draw(there[:SHOWN], list(found.values())[:SHOWN], run.facts.label_names),
        **data.corrupt.beside(errors | {"images": len(found)}, args.split),
        split=args.split,
        threshold=args.threshold,
    )


if __name__ == "__main__":
    sys.exit(command.run(main))
