"""The HTML report in a real browser: nothing reaches over the page's edge, dark on white."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from paper import plots, report
from run import plotting, result

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MARGIN = 12  # pixels beside the text, the page's padding


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with a figure and a table that is wider than a telephone."""
    out = tmp_path_factory.mktemp("page")
    figure, axis = plotting.pyplot().subplots(figsize=(10, 3))
    axis.plot([0, 1], [1, 0])
    name = plots.save(figure, out, "table6")
    columns = [f"a column with a long name {i}" for i in range(12)]
    table = result.table("A table", columns, [["network", *range(11)]] * 3)
    args = result.parser("table6", "").parse_args([f"--out={out}"])
    args.command = "python -m paper.table6 " + "--option=value " * 30
    result.publish(args, "Table 6", result.header(args), [table], figures=[name])
    report.main([f"--results={out}"])
    return out / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 600])
def test_the_page_fits_its_window(page, width, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    picture = tmp_path / "page.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--screenshot={picture}", f"--window-size={width},2400", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (2400, width)
    assert np.all(pixels[:, :MARGIN] == 255) and np.all(pixels[:, -MARGIN:] == 255)
    assert pixels.min() < 50 and (pixels > 230).mean() > 0.8
