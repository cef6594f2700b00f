"""DICOM: numbers of the modality, brighter is larger, colours in RGB, no windowing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skmkd._images.image_files import ImageFile, UnreadableImageError

pydicom = pytest.importorskip("pydicom")
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"  # these come with the package
RNG = np.random.default_rng(0)


def write(path, pixels, **tags):
    """Write pixels (H, W[, 3]) with the tags that say what they mean."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.save_as(path, enforce_file_format=True)


def draw(dtype, shape=(6, 8), bits=None):
    info = np.iinfo(dtype)
    high = info.max if bits is None else 2**bits - 1
    return RNG.integers(info.min if info.min else 0, high, shape, dtype=dtype, endpoint=True)


def check(path, expected):
    file = ImageFile(path)
    assert (file.shape, file.dtype) == (expected.shape, expected.dtype)
    assert_array_equal(np.asarray(file), expected, strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_stored_numbers_are_kept(tmp_path, dtype):
    pixels = draw(dtype)
    write(tmp_path / "image.dcm", pixels)
    check(tmp_path / "image.dcm", pixels)
    (tmp_path / "image.dcm").rename(tmp_path / "IM0001")  # as scanners name them
    check(tmp_path / "IM0001", pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_are_kept(tmp_path, dtype):
    pixels = draw(dtype, (6, 8, 3))
    write(tmp_path / "image.dcm", pixels)
    check(tmp_path / "image.dcm", pixels)


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.5, 0), (2.25, 10), (1, 0)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_rescale_gives_the_units_of_the_modality(tmp_path, slope, intercept, dtype):
    pixels = draw(dtype)
    write(tmp_path / "ct.dcm", pixels, RescaleSlope=slope, RescaleIntercept=intercept)
    check(tmp_path / "ct.dcm", (slope * pixels.astype(float) + intercept).astype(np.float32))


def test_windows_are_not_applied(tmp_path):
    pixels = draw(np.uint16)
    write(tmp_path / "image.dcm", pixels, WindowCenter=100, WindowWidth=50)
    check(tmp_path / "image.dcm", pixels)


@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16), (np.int16, 16)]
)
def test_white_is_zero_is_turned_round_within_its_bits(tmp_path, dtype, bits):
    pixels = draw(dtype, bits=None if dtype == np.int16 else bits)
    write(tmp_path / "image.dcm", pixels, PhotometricInterpretation="MONOCHROME1", BitsStored=bits)
    read = np.asarray(ImageFile(tmp_path / "image.dcm"))
    assert read.dtype == dtype
    ends = -1 if dtype == np.int16 else 2**bits - 1  # lowest and highest add up to it
    assert_array_equal(read.astype(int) + pixels.astype(int), np.full(pixels.shape, ends))


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_become_colours(tmp_path, bits):
    dtype = np.dtype(f"u{bits // 8}")
    colours = draw(dtype, (3, 256))
    tags = {}
    for name, lut in zip(("Red", "Green", "Blue"), colours, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = lut.tobytes()
    pixels = draw(np.uint8)
    write(tmp_path / "image.dcm", pixels, PhotometricInterpretation="PALETTE COLOR", **tags)
    check(tmp_path / "image.dcm", colours.T[pixels])


def test_luminance_and_chrominance_become_colours():
    expected = np.asarray(ImageFile(SAMPLES / "SC_rgb_rle.dcm"))
    for name in ("SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_ybr_full_422_uncompressed.dcm"):
        read = np.asarray(ImageFile(SAMPLES / name))
        assert read.dtype == np.uint8
        inner = np.s_[2:8, 10:90]  # in one bar of the test picture, away from coarse chrominance
        assert_allclose(read[inner].astype(int), expected[inner].astype(int), atol=2)


def test_a_scan_is_read_in_hounsfield_units():
    path = SAMPLES / "CT_small.dcm"  # begins as a TIFF does
    stored = pydicom.dcmread(path).pixel_array
    check(path, stored.astype(np.float32) - 1024)


@pytest.mark.parametrize("name", ["SC_rgb_rle_2frame.dcm", "SC_rgb_rle_16bit_2frame.dcm"])
def test_several_frames_are_refused(name):
    with pytest.raises(UnreadableImageError, match="it holds 2 images.*split it"):
        _ = ImageFile(SAMPLES / name).shape


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rtplan.dcm", "without an image"),
        ("MR_truncated.dcm", "less than expected"),
        ("no_meta.dcm", "it is broken"),
    ],
)
def test_what_is_no_image_is_refused(name, reason):
    with pytest.raises(UnreadableImageError, match=f"{name} cannot be read.*{reason}"):
        np.asarray(ImageFile(SAMPLES / name))


def test_missing_plugin_is_named(monkeypatch):
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(UnreadableImageError, match="its compression, JPEG-LS.*pylibjpeg"):
        _ = ImageFile(SAMPLES / "MR_small_jpeg_ls_lossless.dcm").shape


def test_other_colours_are_refused(tmp_path):
    write(tmp_path / "image.dcm", draw(np.uint8, (6, 8, 3)), PhotometricInterpretation="HSV")
    with pytest.raises(UnreadableImageError, match="its pixels are HSV; only MONOCHROME1"):
        _ = ImageFile(tmp_path / "image.dcm").shape


def test_without_pydicom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        UnreadableImageError, match=r"CT_small.dcm .*DICOM needs pydicom.*`pip install skmkd\[dicom"
    ):
        _ = ImageFile(SAMPLES / "CT_small.dcm").shape


def test_header_decodes_no_pixel(monkeypatch):
    monkeypatch.setattr("pydicom.pixels.pixel_array", None)
    assert ImageFile(SAMPLES / "CT_small.dcm").shape == (128, 128)
