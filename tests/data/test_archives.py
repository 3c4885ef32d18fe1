"""prepare_data.py on archives whose members claim too much, or cost too much to decode."""

import io
import tarfile

import pytest

from tests.data.test_prepare_data import run
from tests.support import ilsvrc


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_member_that_claims_a_terabyte_is_refused(tmp_path, capsys, sparse, inner):
    """In the archive of the classes, or in that of one class."""
    ilsvrc.write_archives(tmp_path)
    liar = tarfile.TarInfo("n01440764_1.JPEG" if inner else "n01440764.tar")
    if sparse:  # as `tar --sparse` writes it: nothing but a hole
        liar.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": f"{2**40},0"}
    else:
        liar.size = 2**40
    content = liar.tobuf() + bytes(20_000)
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(content)
    if inner:
        with tarfile.open(path, "w") as tar:
            outer = tarfile.TarInfo("n01440764.tar")
            outer.size = len(content)
            tar.addfile(outer, io.BytesIO(content))
    assert run("imagenet2012", "--from", tmp_path, "--data_dir", tmp_path / "data") == 1
    error = capsys.readouterr().err
    assert f"{liar.name} claims to have 1,099,511,627,776 bytes, in an archive of 2" in error
    assert "Traceback" not in error


def test_an_image_over_the_limit_is_named_and_the_limit_can_be_raised(tmp_path, capsys):
    ilsvrc.write_archives(tmp_path / "archives")
    arguments = ["imagenet2012", "--from", tmp_path / "archives", "--data_dir", tmp_path / "data"]
    assert run(*arguments, "--max_pixels", "9000") == 1
    error = capsys.readouterr().err
    assert f"{ilsvrc.PNG_FILE}: an image of 96 ×" in error and "limit of 9,000" in error
    assert "--max_pixels" in error
