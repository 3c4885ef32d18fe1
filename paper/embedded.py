"""Pictures inside an HTML page, so that it needs no other file."""

import base64
import re
from pathlib import Path

from errors import UserError


def picture(path: Path, name: str) -> str:
    """The HTML of a picture; of an SVG file, the drawing itself with its ids made unique.

    Args:
      path: of an SVG or PNG file.
      name: begins the ids; unlike that of every other picture of the page.

    Raises:
      UserError: the file is missing or holds no picture.
    """
    try:
        if path.suffix != ".svg":
            content = base64.b64encode(path.read_bytes()).decode()
            return f"<img alt='' src='data:image/{path.suffix[1:]};base64,{content}'>"
        text = path.read_text()
        drawing = text[text.index("<svg") :]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: no figure ({error}); run the command that is named beside it again."
        ) from error
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r"url\(#", f"url(#{name}-", drawing)
    return re.sub(r'href="#', f'href="#{name}-', drawing)
