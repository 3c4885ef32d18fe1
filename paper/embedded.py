"""Pictures inside an HTML page, so that it needs no other file."""

import base64
from pathlib import Path

from errors import UserError
from run.command import in_html

TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def picture(path: Path) -> str:
    """The HTML of a picture. It stands in an `img`, in which no script of an SVG file is run.

    Args:
      path: of an SVG or PNG file.

    Raises:
      UserError: the file is missing or holds no picture.
    """
    advice = "run the command that is named beside it again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: no figure ({error}); {advice}.") from error
    beginning = b"<svg" if path.suffix == ".svg" else b"PNG"
    if path.suffix not in TYPES or beginning not in content:
        raise UserError(f"{path}: no figure (expected an SVG or PNG picture); {advice}.")
    data = base64.b64encode(content).decode()
    return f"<img alt='{in_html(path.stem)}' src='data:{TYPES[path.suffix]};base64,{data}'>"
