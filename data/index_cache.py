"""An index that is costly to build, kept as JSON with a checksum where there is room for it."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from run import files


def data_directory(data_dir: str) -> Path:
    """The directory of prepared data sets; '' means TFDS's default."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return files.at(data_dir or default).expanduser()


def places(root: Path, name: str, data_dir: str) -> list[Path]:
    """Where the index of `root` may lie: inside it, or in `data_dir` when it is read-only."""
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    outside = data_directory(data_dir) / "index" / f"{root.name}-{digest}-{name}.json"
    return [root / f".index-{name}.json", outside]


def cached(
    candidates: Sequence[Path], current: Callable[[dict], bool], build: Callable[[], dict]
) -> dict:
    """The first stored index that is `current`, else a new one, stored if any place takes it.

    A file that differs from its checksum, or written by another version, counts as absent.
    """
    for path in candidates:
        try:
            index, had_checksum = files.unsealed(path.read_text())
            if had_checksum and current(index):
                return index
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
    index = build()
    text = files.sealed(index)
    for path in candidates:
        with contextlib.suppress(OSError), files.whole(path) as temporary:
            temporary.write_text(text)
            break
    return index
