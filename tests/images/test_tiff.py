"""TIFF: what tifffile writes is read as tifffile reads it, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal
from PIL import Image, ImageOps

from skmkd._images.image_files import ImageFile, UnreadableImageError

CASES = 400  # any number: each has its own seed
DTYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "c8"]
SERVED = "buif"
CHANNELS = [1, 1, 1, 2, 3, 3, 4, 5]
has_imagecodecs = tifffile.COMPRESSION.LZW in tifffile.TIFF.DECOMPRESSORS


def draw_pixels(rng, shape, dtype):
    """Draw numbers over the whole range of a dtype, or over a narrow one, with NaN and infinity."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.3
    if dtype.kind in "ui":
        info = np.iinfo(dtype)
        high = rng.choice([info.max, min(info.max, 1023)])
        return rng.integers(info.min, high, shape, dtype=dtype, endpoint=True)
    pixels = rng.normal(20, 1000, shape).astype(dtype)
    if rng.random() < 0.5:
        pixels.flat[0], pixels.flat[-1] = np.nan, -np.inf
    return pixels


def write_case(path, seed):
    """Write a file; return its pixels, channels last and as stored, or None if it is refused."""
    rng = np.random.default_rng(seed)
    dtype, channels = rng.choice(DTYPES), int(rng.choice(CHANNELS))
    pages, planar = int(rng.choice([1, 1, 1, 1, 3])), bool(rng.random() < 0.3)
    height, width = (int(n) for n in rng.integers(2, 70, 2))
    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = draw_pixels(rng, (pages, *shape), dtype)
    options = {
        "bigtiff": bool(rng.random() < 0.3), "byteorder": str(rng.choice(["<", ">"])),
        "metadata": None if rng.random() < 0.5 else {},
    }  # fmt: skip
    layout = rng.integers(3)
    if layout == 1:
        options["rowsperstrip"] = int(rng.integers(1, height + 1))
    if layout == 2 and dtype != "bool":
        options["tile"] = tuple(int(n) for n in rng.choice([16, 32], 2))
    if rng.random() < 0.4:
        options["compression"] = "zlib"
        options["predictor"] = bool(np.dtype(dtype).kind in "ui" and rng.random() < 0.5)
    grey = channels == 1 or np.dtype(dtype).kind != "u" or rng.random() < 0.2
    options["photometric"] = rng.choice(["minisblack", "miniswhite"]) if grey else "rgb"
    colours = 1 if grey else 3
    extras = max(channels - colours, 0)
    meaning = str(rng.choice(["unassalpha", "unspecified"]))
    if channels > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    if extras:
        options["extrasamples"] = [meaning, *["unspecified"] * (extras - 1)]
    if not grey and channels < 3:
        options |= {"photometric": "minisblack", "extrasamples": [meaning]}
    grey = grey or channels < 3
    stored = np.moveaxis(pixels, -1, 1) if channels > 1 and planar else pixels
    tifffile.imwrite(path, stored if pages > 1 else stored[0], **options)
    served = (
        pages == 1
        and np.dtype(dtype).kind in SERVED
        and (dtype != "bool" or channels == 1)
        and (
            channels in (1, 3)
            or (channels == 4 and not grey and meaning != "unspecified")
            or (channels == 2 and meaning != "unspecified")
        )
    )
    return (pixels[0], stored[0]) if served else (None, None)


@pytest.mark.parametrize("block", range(0, CASES, 50))
def test_what_tifffile_writes_is_read_or_refused(tmp_path, block):
    for seed in range(block, min(block + 50, CASES)):
        path = tmp_path / f"{seed}.tif"
        pixels, stored = write_case(path, seed)
        file = ImageFile(path)
        if pixels is None:
            for ask in (lambda file=file: file.shape, lambda file=file: np.asarray(file)):
                with pytest.raises(UnreadableImageError, match=f"{seed}.tif cannot be read"):
                    ask()
            continue
        assert_array_equal(np.squeeze(tifffile.imread(path)), np.squeeze(stored), err_msg=str(seed))
        if pixels.dtype == bool:
            pixels = np.where(pixels, 255, 0).astype(np.uint8)
        if pixels.ndim == 3 and pixels.shape[2] == 2:
            pixels = pixels[..., [0, 0, 0, 1]]
        assert (file.shape, file.dtype) == (pixels.shape, pixels.dtype), seed
        assert_array_equal(np.asarray(file), pixels, err_msg=str(seed), strict=True)


RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 50), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)


def check(path, expected):
    file = ImageFile(path)
    assert (file.shape, file.dtype) == (expected.shape, expected.dtype)
    assert_array_equal(np.asarray(file), expected, strict=True)


def check_refused(path, reason):
    for ask in (lambda: ImageFile(path).shape, lambda: np.asarray(ImageFile(path))):
        with pytest.raises(UnreadableImageError, match=f"{path.name} cannot be read.*{reason}"):
            ask()


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (1, 9, 3), (9, 1, 3), (9, 6, 1)])
def test_thin_images_keep_both_sides(tmp_path, shape):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    colour = shape[-1] == 3
    tifffile.imwrite(tmp_path / "thin.tif", pixels, photometric="rgb" if colour else "minisblack")
    check(tmp_path / "thin.tif", pixels if colour else pixels.reshape(shape[:2]))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"metadata": None}, {"imagej": True}, {"ome": True}, {"truncate": True},
        {"volumetric": True, "tile": (16, 16, 16)}, {"bigtiff": True, "compression": "zlib"},
    ],
    ids=["shaped", "plain", "ImageJ", "OME", "one header", "volume", "BigTIFF"],
)  # fmt: skip
def test_stacks_are_refused_with_their_number_of_images(tmp_path, options):
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([GREY] * 5), photometric="minisblack",
                     **options)  # fmt: skip
    check_refused(tmp_path / "stack.tif", "it holds 5 images.*split it.*tifffile.imread")


def test_pages_of_several_sizes_are_refused(tmp_path):
    frames = [Image.fromarray(pixels) for pixels in (GREY, GREY.T)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    check_refused(tmp_path / "pages.tif", "it holds 2 images")


@pytest.mark.parametrize("sub_ifds", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pyramids_and_thumbnails_are_one_image(tmp_path, sub_ifds, dtype):
    pixels = GREY.astype(dtype)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(pixels, subifds=2 if sub_ifds else None, tile=(16, 16), metadata=None)
        for step in (2, 4):
            writer.write(pixels[::step, ::step], subfiletype=1, tile=(16, 16), metadata=None)
    check(tmp_path / "pyramid.tif", pixels)


def test_raw_files_of_cameras_are_not_taken_for_their_preview(tmp_path):
    with tifffile.TiffWriter(tmp_path / "raw.tif") as writer:
        writer.write(COLOUR[::4, ::4], subfiletype=1, subifds=1, metadata=None)
        writer.write(GREY, photometric="cfa", metadata=None)
    check_refused(tmp_path / "raw.tif", "its first page is a preview")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_palettes_become_colours_by_their_high_bytes(tmp_path, dtype):
    colours = RNG.integers(0, 65536, (3, 2 ** (8 * np.dtype(dtype).itemsize)), dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "palette.tif", GREY.astype(dtype), photometric="palette", colormap=colours
    )
    check(tmp_path / "palette.tif", (colours // 256).astype(np.uint8).T[GREY])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_orientation_is_applied(tmp_path, orientation, compression, pixels):
    path = tmp_path / "turned.tif"
    image = Image.fromarray(pixels)
    image.save(path, compression=compression, tiffinfo={274: orientation})
    image.getexif()[0x0112] = orientation
    check(path, np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK"])
def test_compressions_that_others_write(tmp_path, compression, mode):
    if compression == "jpeg" and mode not in ("L", "RGB"):
        pytest.skip("JPEG has other modes")
    image = Image.fromarray(COLOUR).convert(mode)
    image.save(tmp_path / "image.tif", compression=compression)
    with Image.open(tmp_path / "image.tif") as saved:
        plain = saved.convert("RGB") if mode in ("P", "CMYK") else saved
        check(tmp_path / "image.tif", np.asarray(plain))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "tiff_lzw"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_one_bit_is_never_inverted(tmp_path, compression, photometric):
    ones = GREY > 100
    shown = ones if photometric else ~ones  # Pillow stores what is shown
    Image.fromarray(shown).save(
        tmp_path / "scan.tif", compression=compression, tiffinfo={262: photometric}
    )
    check(tmp_path / "scan.tif", np.where(ones, 255, 0).astype(np.uint8))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "palette"])
def test_few_bits_are_spread_over_8(tmp_path, bits, photometric):
    path = tmp_path / "image.tif"
    colours = {"colormap": np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))}
    tifffile.imwrite(
        path, GREY, photometric=photometric, **(colours if photometric == "palette" else {})
    )
    numbers = np.unpackbits(GREY, axis=1).reshape(40, -1, bits) @ (1 << np.arange(bits)[::-1])
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages.first.tags
        tags["BitsPerSample"].overwrite(bits)
        tags["ImageWidth"].overwrite(numbers.shape[1])
        if photometric == "palette":
            tags["ColorMap"].overwrite(np.tile(np.arange(2**bits) * 257, 3).tolist())
    if photometric == "palette":
        check(path, np.repeat(numbers[..., None], 3, axis=2).astype(np.uint8))
    else:
        check(path, (numbers * 255 // (2**bits - 1)).astype(np.uint8))


@pytest.mark.skipif(has_imagecodecs, reason="imagecodecs reads them")
def test_missing_extra_is_named(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "image.tif", compression="tiff_lzw")
    whole = bytearray((tmp_path / "image.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "image.tif") as tiff:
        place = tiff.pages.first.tags["Compression"].valueoffset
    whole[place : place + 2] = (33005).to_bytes(2, "little")
    (tmp_path / "image.tif").write_bytes(whole)
    check_refused(
        tmp_path / "image.tif", r"8 bits with the compression APERIO_JP2000_RGB.*skmkd\[tiff\]"
    )


@pytest.mark.skipif(not has_imagecodecs, reason="imagecodecs is not installed")
@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_packed_numbers_are_read_or_refused(tmp_path, bits, byteorder):
    pixels = RNG.integers(0, 2**bits, (7, 9), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "image.tif", pixels, bitspersample=bits, byteorder=byteorder)
    if byteorder == "<":
        check(tmp_path / "image.tif", pixels)
    else:
        check_refused(tmp_path / "image.tif", f"{bits} bits.*not read")


@pytest.mark.skipif(not has_imagecodecs, reason="imagecodecs is not installed")
@pytest.mark.parametrize("compression", ["lzw", "zstd", "jpeg2000", "lzma", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.float32])
def test_what_imagecodecs_decodes_is_read(tmp_path, compression, dtype):
    if compression == "jpeg2000" and dtype == np.float32:
        pytest.skip("JPEG 2000 has no floats")
    tifffile.imwrite(tmp_path / "image.tif", GREY.astype(dtype), compression=compression)
    check(tmp_path / "image.tif", tifffile.imread(tmp_path / "image.tif"))


@pytest.mark.parametrize(
    ("pixels", "options", "reason"),
    [
        (COLOUR[..., :2], {"photometric": "minisblack"}, "2 channel.*1 of no stated meaning"),
        (np.dstack([COLOUR, GREY]), {"photometric": "rgb", "extrasamples": ["unspecified"]},
         "4 channel.*1 of no stated meaning"),
        (np.dstack([COLOUR, COLOUR[..., :2]]), {"photometric": "rgb"}, "5 channel"),
        (GREY.astype(np.complex64), {}, "complex64"),
        (np.dstack([COLOUR, GREY]).astype(np.uint16), {"photometric": "separated"},
         "SEPARATED of 4 channel.*uint16"),
        (COLOUR, {"photometric": "cielab"}, "CIELAB"),
    ],
    ids=["two", "near infrared", "five", "complex", "deep CMYK", "Lab"],
)  # fmt: skip
def test_other_kinds_are_refused_with_what_they_are(tmp_path, pixels, options, reason):
    if pixels.ndim == 3:
        options = {"planarconfig": "contig", **options}
    tifffile.imwrite(tmp_path / "odd.tif", pixels, **options)
    check_refused(tmp_path / "odd.tif", reason)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 7}])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_truncated_files_are_refused(tmp_path, options, compression, dtype):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, GREY.astype(dtype), compression=compression, **options)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, len(whole) // 20):
        path.write_bytes(whole[:end])
        check_refused(path, "")


def test_header_decodes_no_pixel(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "image.tif", COLOUR)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", None)
    assert ImageFile(tmp_path / "image.tif").shape == COLOUR.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colours_are_divided_by_the_alpha_that_they_are_multiplied_by(tmp_path, dtype):
    opaque = np.iinfo(dtype).max if dtype != np.float32 else 1
    colours = np.linspace(0.1, 0.9, 3 * 20).reshape(4, 5, 3)
    alpha = np.full((4, 5, 1), 0.5)
    alpha[0], alpha[1] = 1, 0
    stored = (np.dstack([colours * alpha, alpha]) * opaque).astype(dtype)
    tifffile.imwrite(tmp_path / "image.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    read = np.asarray(ImageFile(tmp_path / "image.tif"))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read[..., 3], stored[..., 3])
    expected = np.where(alpha > 0, colours, 0) * opaque
    np.testing.assert_allclose(read[..., :3], expected, atol=3 if opaque > 1 else 1e-6)
