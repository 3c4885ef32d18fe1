"""Host transforms: every format becomes right RGB, crops are those of the whole image."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from data import jpeg, keys, stream, transforms
from data.decode import DecodeError, decode, image_size


@pytest.fixture(scope="module")
def photo():
    """A photograph, uint8 [427, 640, 3]."""
    return load_sample_images().images[0]


def encode(image, format="JPEG", **options):
    buffer = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def random_crop(data, generator, size, kind="random_resized_crop", **options):
    options = {"flip": True, **options}
    return stream.train_transform(kind=kind, image_size=size, **options)(data, generator)


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


def test_lossless_formats_are_exact(photo):
    for format, options in [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})]:
        data = encode(photo, format, **options)
        np.testing.assert_array_equal(decode(data), photo)
        assert image_size(data) == (427, 640)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_equals_pillow(photo, options):
    data = encode(photo, quality=90, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert difference(decode(data), expected).max() <= 1


def test_grey_and_cmyk_jpeg(photo):
    grey = encode(Image.fromarray(photo).convert("L"), quality=95)
    decoded = decode(grey)
    assert decoded.shape == photo.shape
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    assert difference(decoded[..., 0], np.asarray(Image.fromarray(photo).convert("L"))).mean() < 2
    cmyk = encode(Image.fromarray(photo).convert("CMYK"), quality=95)
    assert difference(decode(cmyk), photo).mean() < 2
    assert difference(transforms.decode_crop(cmyk, transforms.Box(0, 0, 400, 400), size=400),
                      photo[:400, :400]).mean() < 2  # fmt: skip


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photo, orientation, format):
    upright = photo[:80, :120]
    # How the camera stored it: the inverse of each orientation's transpose.
    methods = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's Transpose numbers
    stored = Image.fromarray(upright)
    if orientation in methods:
        stored = stored.transpose(Image.Transpose(methods[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 97, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}
    data = encode(stored, format, exif=exif, **options[format])
    assert image_size(data) == (80, 120)
    assert difference(decode(data), upright).mean() < 2
    crop = transforms.decode_crop(data, transforms.Box(10, 20, 40, 40), size=40)
    assert difference(crop, upright[10:50, 20:60]).mean() < 2


def test_palette_alpha_16_bit_bilevel_and_animation(photo):
    small = photo[:60, :90]
    palette = Image.fromarray(small).quantize(64)
    np.testing.assert_array_equal(
        decode(encode(palette, "PNG")), np.asarray(palette.convert("RGB"))
    )
    transparent = encode(palette, "PNG", transparency=bytes(range(64)))
    np.testing.assert_array_equal(decode(transparent), np.asarray(palette.convert("RGB")))

    alpha = np.dstack([small, np.full(small.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(decode(encode(alpha, "PNG")), small)
    grey_alpha = Image.fromarray(alpha).convert("LA")
    np.testing.assert_array_equal(
        decode(encode(grey_alpha, "PNG"))[..., 1], np.asarray(grey_alpha)[..., 0]
    )

    wide = (small[..., 0].astype(np.uint16) << 8) + 77
    np.testing.assert_array_equal(decode(encode(wide, "PNG"))[..., 0], small[..., 0])
    np.testing.assert_array_equal(decode(rgb16_png(small)), small)

    bilevel = Image.fromarray(small).convert("1")
    assert set(np.unique(decode(encode(bilevel, "PNG")))) == {0, 255}

    frames = [Image.fromarray(small), Image.fromarray(255 - small)]
    for format, options in [("PNG", {}), ("WEBP", {"lossless": True})]:
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode(data), small)


def rgb16_png(image):
    """A 16-bit RGB PNG, which Pillow cannot write."""
    height, width, _ = image.shape
    rows = (image.astype(">u2") << 8) + 200
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(content)) + name + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_errors(photo, format, share):
    data = encode(photo, format)
    cut = data[: int(len(data) * share)]
    with pytest.raises(DecodeError):
        decode(cut)
    with pytest.raises(DecodeError):
        random_crop(cut, keys.host_generator(0, 0), 32)


def test_truncation_below_the_crop_is_an_error_too(photo):
    """Whether a record is corrupt must not depend on where the crop fell."""
    data = encode(photo)
    with pytest.raises(DecodeError, match="truncated"):
        transforms.decode_crop(data[: len(data) * 9 // 10], transforms.Box(0, 0, 32, 32), size=32)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8\xff", b"not an image" * 9, bytes(5000)])
def test_garbage_is_an_error(data):
    for use in (decode, image_size):
        with pytest.raises(DecodeError):
            use(data)


def test_damaged_jpeg_is_an_error(photo):
    data = encode(photo)
    with pytest.raises(DecodeError, match="damaged"):
        decode(data[:20000] + data[25000:])


def test_harmless_oddities_of_jpeg_are_accepted(photo):
    data = encode(photo)
    for odd in (data + b"trailing", data[:-2], data[:-2] + b"abc" + data[-2:]):
        np.testing.assert_array_equal(decode(odd), decode(data))


def test_decompression_bombs_are_refused(photo):
    bomb = bytearray(encode(photo))
    offset = jpeg.read_header(bytes(bomb)).frame_offset
    bomb[offset + 5 : offset + 9] = struct.pack(">HH", 60000, 60000)
    for use in (decode, lambda d: transforms.decode_crop(d, transforms.Box(0, 0, 9, 9), size=9)):
        with pytest.raises(DecodeError, match="60,000 × 60,000"):
            use(bytes(bomb))
    with pytest.raises(DecodeError, match="limit of 1,000"):
        decode(encode(photo, "PNG"), max_pixels=1000)


# ---- Training crops


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0},
                                     {"restart_marker_blocks": 8}])  # fmt: skip
@pytest.mark.parametrize("box", [(0, 0, 64, 64), (100, 300, 64, 64), (363, 576, 64, 64)])
def test_decoding_only_the_rows_needed_changes_nothing(photo, options, box):
    data = encode(photo, quality=90, **options)
    top, left, side, _ = box
    crop = transforms.decode_crop(data, transforms.Box(*box), size=side)
    np.testing.assert_array_equal(crop, decode(data)[top : top + side, left : left + side])


def test_fewer_rows_are_decoded(photo):
    data = encode(photo)
    rows = jpeg.decode_rows(data, jpeg.read_header(data), 100)
    assert rows.shape == (112, 640, 3)
    np.testing.assert_array_equal(rows[:110], decode(data)[:110])
    for number in range(90, 115):
        rows = jpeg.decode_rows(data, jpeg.read_header(data), number)
        np.testing.assert_array_equal(rows[:number], decode(data)[:number])


def test_large_boxes_are_decoded_at_a_coarser_scale(photo):
    data = encode(photo, quality=95)
    header = jpeg.read_header(data)
    assert jpeg.decode_rows(data, header, 427, factor=4).shape == (107, 160, 3)
    coarse = transforms.decode_crop(data, transforms.Box(10, 20, 400, 400), size=64)
    corners = (20, 10, 420, 410)  # left, top, right, bottom
    exact = Image.fromarray(photo).resize((64, 64), Image.Resampling.BILINEAR, box=corners)
    assert difference(coarse, np.asarray(exact)).mean() < 4


def test_results_outlive_the_next_decode(photo):
    """The decoder's memory is reused; no crop may be a view of it."""
    data, other = encode(photo), encode(255 - photo)
    for box, size in [((0, 0, 64, 64), 64), ((3.5, 2.5, 90, 90), 48), ((0, 0, 200, 200), 48)]:
        crop = transforms.decode_crop(data, transforms.Box(*box), size=size)
        before = crop.copy()
        transforms.decode_crop(other, transforms.Box(*box), size=size)
        np.testing.assert_array_equal(crop, before)


def test_flip_mirrors(photo):
    data = encode(photo)
    for box in (transforms.Box(3, 5, 90, 80), transforms.Box(3.25, 5.5, 90.5, 80.25),
                transforms.Box(3.25, 5.5, 300.5, 280.25)):  # fmt: skip
        straight = transforms.decode_crop(data, box, size=48)
        mirrored = transforms.decode_crop(data, box, size=48, flip=True)
        assert difference(mirrored, straight[:, ::-1]).max() <= 1


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (1, 1), (2000, 3), (3, 2000)])
def test_random_resized_crop_boxes_stay_inside(shape):
    height, width = shape
    for position in range(200):
        generator = keys.host_generator(7, position)
        box = transforms.random_resized_crop_box(generator, *shape, (0.08, 1), (3 / 4, 4 / 3))
        assert box.height >= 1 and box.width >= 1
        assert 0 <= box.top <= height - box.height and 0 <= box.left <= width - box.width


def test_random_resized_crop_statistics():
    boxes = [
        transforms.random_resized_crop_box(
            keys.host_generator(0, i), 400, 500, (0.2, 0.4), (0.5, 1.5)
        )
        for i in range(2000)
    ]
    _, lefts, heights, widths = np.array(boxes).T
    shares, aspects = heights * widths / 200000, widths / heights
    assert shares.min() > 0.19 and shares.max() < 0.41
    assert aspects.min() > 0.48 and aspects.max() < 1.52
    assert abs(shares.mean() - 0.3) < 0.01
    assert abs((lefts / (500 - widths)).mean() - 0.5) < 0.03


def test_scale_jitter_equals_resize_then_crop(photo, monkeypatch):
    """One crop-and-resize lands on the pixel grid of the paper's literal two steps."""
    data = encode(photo, "PNG")
    for position in range(6):
        generator = keys.host_generator(1, position)
        with monkeypatch.context() as patch:
            patch.setattr(transforms, "ANTIALIAS_FROM", 0)
            crop = random_crop(data, generator, 224, "scale_jitter", flip=False)
        generator = keys.host_generator(1, position)
        shorter = int(generator.integers(256, 480, endpoint=True))
        place = generator.random(2)
        resized = transforms.resize_shorter_side(photo, shorter)
        assert min(resized.shape[:2]) == shorter
        top = int(place[0] * (resized.shape[0] - 223))
        left = int(place[1] * (resized.shape[1] - 223))
        literal = resized[top : top + 224, left : left + 224]
        assert difference(crop, literal).max() <= 1
        # The fast path is bilinear on the same grid.
        generator = keys.host_generator(1, position)
        fast = random_crop(data, generator, 224, "scale_jitter", flip=False)
        assert difference(fast, literal).mean() < 5


def test_scale_jitter_shorter_sides_cover_the_range():
    sides = {
        round(224 * 300 / transforms.scale_jitter_box(
            keys.host_generator(3, i), 300, 400, 224, 256, 260).height)
        for i in range(100)
    }  # fmt: skip
    assert sides == {256, 257, 258, 259, 260}


@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (3, 2000), (1, 5)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_extreme_shapes(shape, format):
    image = np.full((*shape, 3), (200, 100, 50), np.uint8)
    data = encode(image, format, **({"quality": 95} if format == "JPEG" else {}))
    generator = keys.host_generator(0, 0)
    results = [
        random_crop(data, generator, 32),
        random_crop(data, generator, 32, "scale_jitter", resize_min=32, resize_max=40),
        transforms.resize_and_crop(decode(data), resize=40, size=32),
        *transforms.ten_crop(decode(data), resize=40, size=32),
    ]
    for result in results:
        assert result.shape == (32, 32, 3) and result.dtype == np.uint8
        assert difference(result, np.array([200, 100, 50])).max() <= 6


def test_crops_are_a_function_of_seed_and_position(photo):
    data = encode(photo)

    def crop(seed, position):
        generator = keys.host_generator(seed, position)
        return random_crop(data, generator, 16)

    np.testing.assert_array_equal(crop(5, 9), crop(5, 9))
    assert difference(crop(5, 9), crop(5, 10)).any() and difference(crop(5, 9), crop(6, 9)).any()


def center(image, size=56):
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (300, 300), (100, 601)])
def test_evaluation_crop_equals_resize_then_crop(photo, shape):
    image = np.resize(photo, (*shape, 3))
    whole = transforms.resize_shorter_side(image, 64)
    assert min(whole.shape[:2]) == 64
    one_pass = transforms.resize_and_crop(image, resize=64, size=56)
    assert difference(one_pass, center(whole)).max() <= 1


def test_evaluation_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = transforms.resize_and_crop(stripes, resize=32, size=32)
    assert difference(small, np.full_like(small, 127)).max() <= 6


def test_ten_crop(photo):
    crops = transforms.ten_crop(photo, resize=64, size=56)
    whole = transforms.resize_shorter_side(photo, 64)
    assert crops.shape == (10, 56, 56, 3)
    np.testing.assert_array_equal(crops[0], whole[:56, :56])
    np.testing.assert_array_equal(crops[1], whole[:56, -56:])
    np.testing.assert_array_equal(crops[2], whole[-56:, :56])
    np.testing.assert_array_equal(crops[3], whole[-56:, -56:])
    np.testing.assert_array_equal(crops[4], center(whole))
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
