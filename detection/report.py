"""What `predict.py` says and draws of one image."""

from typing import Any

import numpy as np
from PIL import Image

from detection import draw
from detection.network import Network, find, segment


def described(
    network: Network, image: np.ndarray, min_score: float
) -> tuple[dict[str, Any], Image.Image]:
    """What a detector or segmenter finds in an image, for JSON, and a picture of it.

    Args:
      image: uint8 `[height, width, 3]`.
      min_score: of the objects that are named and drawn.

    Returns:
      `{'detections': [{'name', 'label', 'score', 'box'}, …]}`, the best first, boxes as left, top,
      right, bottom in pixels; or `{'classes': [{'name', 'label', 'share'}, …]}`, the share of the
      image's pixels, the largest first.
    """
    names = network.label_names
    if not network.longer:
        (logits,) = segment(network, [image])
        at = logits.argmax(-1)
        counts = np.bincount(at.reshape(-1), minlength=len(names))
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        shares = [{"name": names[i], "label": i, "share": counts[i] / at.size} for i in order]
        return {"classes": shares}, draw.classes(image, at, names)
    (found,) = find(network, [image], min_score=min_score)
    entries = [
        {
            "name": names[label],
            "label": int(label),
            "score": float(score),
            "box": [round(float(side), 2) for side in box],
        }
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]
    return {"detections": entries}, draw.objects(image, found, names)
