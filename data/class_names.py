"""Names of classes for people: ImageNet's words for its synset ids.

`imagenet_classes.txt` holds the ids in the order of the labels and WordNet's words for them; its
head states the sources and the licence.
"""

import functools
import pathlib
from collections.abc import Iterable

_FILE = pathlib.Path(__file__).with_name("imagenet_classes.txt")


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """The 1000 classes of ImageNet in the order of the labels.

    Returns:
      dict from synset id ('n01440764') to words ('tench, Tinca tinca'), in label order.
    """
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def readable(label_names: Iterable[str]) -> tuple[str, ...]:
    """Label names as people read them, one for each of `label_names`, in the same order.

    Synset ids become WordNet's words, as data prepared by TFDS or sorted into folders by id needs;
    any other name stays what it is.
    """
    words = imagenet_classes()
    return tuple(words.get(name, name) for name in label_names)
