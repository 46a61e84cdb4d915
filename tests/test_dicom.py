"""DICOM slides: planes and levels in one instance or several, against the pixels that were written into them."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import imagecodecs
import numpy as np
import openslide
import pydicom
import pytest
import simplejpeg
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, generate_uid

from papsmear.errors import InputError
from papsmear.tiling.dicom import DicomSource, dicom_planes
from papsmear.tiling.planes import Focus, open_planes
from papsmear.tiling.reader import open_slide
from papsmear.tiling.tile import tile

WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"
TILE_PX = 128
Form = Literal["raw", "jpeg", "jpeg2000"]
SYNTAX = {"raw": ExplicitVRLittleEndian, "jpeg": JPEGBaseline8Bit, "jpeg2000": JPEG2000Lossless}


def frames_of(rgb: NDArray[np.uint8]) -> list[tuple[int, int, NDArray[np.uint8]]]:
    """Tiles (TILE_PX, TILE_PX, 3) row by row with their 1-based column and row in pixels; white beyond the edge."""
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)), constant_values=255)
    return [
        (x + 1, y + 1, np.ascontiguousarray(padded[y : y + TILE_PX, x : x + TILE_PX]))
        for y in range(0, height, TILE_PX)
        for x in range(0, width, TILE_PX)
    ]


def compressed(frame: NDArray[np.uint8], form: Form) -> bytes:
    if form == "jpeg":
        return bytes(simplejpeg.encode_jpeg(frame, quality=95, colorsubsampling="422"))
    return bytes(imagecodecs.jpeg2k_encode(frame, codecformat="j2k", mct=False, reversible=True))


def item(**values: object) -> Dataset:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def write_instance(
    file: Path,
    planes: Sequence[NDArray[np.uint8]],
    mpp: float,
    series: str,
    z_um: Sequence[float] = (0.0,),
    sparse: bool = False,
    form: Form = "raw",
    derived: bool = False,
) -> Path:
    """Writes one instance of a whole-slide image, as PS3.3 A.32.8 has it: one level with all its `planes` (H, W, 3).

    Tiles are in the order of TILED_FULL, plane after plane; TILED_SPARSE takes them backwards and tells each its place.
    """
    height, width = planes[0].shape[:2]
    step_mm = (z_um[1] - z_um[0]) / 1000 if len(z_um) > 1 else None
    frames = [(*frame, z) for z, plane in zip(z_um, planes, strict=True) for frame in frames_of(plane)]
    if sparse:
        frames.reverse()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = WSI
    meta.MediaStorageSOPInstanceUID = uid = generate_uid(entropy_srcs=[series, file.name])
    meta.TransferSyntaxUID = SYNTAX[form]
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = WSI, uid
    data.SeriesInstanceUID = series
    data.StudyInstanceUID = data.FrameOfReferenceUID = generate_uid(entropy_srcs=[series])
    data.Modality, data.ContainerIdentifier = "SM", "phantom"
    data.ImageType = ["DERIVED" if derived else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if derived else "NONE"]
    data.Rows = data.Columns = TILE_PX
    data.SamplesPerPixel, data.PlanarConfiguration, data.PixelRepresentation = 3, 0, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PhotometricInterpretation = "YBR_FULL_422" if form == "jpeg" else "RGB"
    data.LossyImageCompression = "01" if form == "jpeg" else "00"
    data.NumberOfFrames = len(frames)
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    data.ImagedVolumeDepth = 0.001
    data.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin = item(XOffsetInSlideCoordinateSystem=20.0, YOffsetInSlideCoordinateSystem=40.0)
    if not sparse:
        origin.ZOffsetInSlideCoordinateSystem = z_um[0]
    data.TotalPixelMatrixOriginSequence = [origin]
    data.OpticalPathSequence = [item(OpticalPathIdentifier="1")]
    data.NumberOfOpticalPaths, data.TotalPixelMatrixFocalPlanes = 1, len(planes)
    data.FocusMethod, data.ExtendedDepthOfField = "AUTO", "NO"
    data.VolumetricProperties, data.SpecimenLabelInImage, data.BurnedInAnnotation = "VOLUME", "NO", "NO"
    measures = item(PixelSpacing=[mpp / 1000, mpp / 1000], SliceThickness=0.001)
    if step_mm is not None:
        measures.SpacingBetweenSlices = step_mm
    data.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures])]
    data.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    if sparse:
        data.PerFrameFunctionalGroupsSequence = [
            item(
                PlanePositionSlideSequence=[
                    item(
                        ColumnPositionInTotalImagePixelMatrix=x,
                        RowPositionInTotalImagePixelMatrix=y,
                        XOffsetInSlideCoordinateSystem=0.0,
                        YOffsetInSlideCoordinateSystem=0.0,
                        ZOffsetInSlideCoordinateSystem=z,
                    )
                ]
            )
            for x, y, _, z in frames
        ]
    if form == "raw":
        data.PixelData = b"".join(frame.tobytes() for *_, frame, _ in frames)
    else:
        data.PixelData = encapsulate([compressed(frame, form) for *_, frame, _ in frames])
        data["PixelData"].is_undefined_length = True
    data.save_as(file, enforce_file_format=True)
    return file


def picture(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Smooth coloured noise (H, W, 3) of the size (W, H), which JPEG keeps within a few grey levels."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 48, size[0] // 48, 3), dtype=np.uint8)
    return cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def halved(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.resize(rgb, (rgb.shape[1] // 2, rgb.shape[0] // 2), interpolation=cv2.INTER_AREA).astype(np.uint8)


Z_UM = (4.0, 5.5, 7.0)
PLANES = [picture((704, 512), seed) for seed in range(3)]
SERIES = "1.2.826.0.1.3680043.8.498.1"


def write_slide(folder: Path, n_planes: int, **how: Any) -> Path:
    """A slide of three levels, each an instance with all planes; the coarsest has the first name."""
    folder.mkdir()
    planes = PLANES[:n_planes]
    for level in range(3):
        file = folder / f"{3 - level}.dcm"
        write_instance(file, planes, 0.25 * 2**level, SERIES, Z_UM[:n_planes], derived=level > 0, **how)
        planes = [halved(plane) for plane in planes]
    return folder


@pytest.mark.parametrize(("sparse", "form"), list(product([False, True], get_args(Form))))
def test_planes_in_one_instance(tmp_path: Path, sparse: bool, form: Form) -> None:
    folder = write_slide(tmp_path / "slide", 3, sparse=sparse, form=form)
    with pytest.raises(openslide.OpenSlideError):  # or this way of reading is not needed any longer
        openslide.OpenSlide(folder / "3.dcm")
    for path in (folder, folder / "3.dcm", folder / "2.dcm"):
        assert dicom_planes(path) == Z_UM
        with open_planes(path) as planes:
            assert planes.z_um == Z_UM
            for written, reader in zip(PLANES, planes.readers, strict=True):
                assert (reader.format, reader.engine, round(reader.mpp, 6)) == ("dicom", "wsidicom", 0.25)
                assert reader.level_sizes == ((704, 512), (352, 256), (176, 128))
                assert reader.level_downsamples == (1, 2, 4)
                for mpp, wanted in ((0.25, written), (0.5, halved(written)), (1.0, halved(halved(written)))):
                    got = reader.read((0, 0), len(wanted), mpp).astype(float)
                    assert np.abs(got - wanted[:, : len(wanted)]).max() <= (40 if form == "jpeg" else 0)
                    assert np.abs(got - wanted[:, : len(wanted)]).mean() < 1.5


def test_planes_in_one_instance_each(tmp_path: Path) -> None:
    for plane, z_um, name in zip(PLANES, Z_UM, "cab", strict=True):
        write_instance(tmp_path / f"{name}.dcm", [plane], 0.25, SERIES, [z_um])
    with open_planes(tmp_path) as planes:
        assert planes.z_um == Z_UM
        for written, reader in zip(PLANES, planes.readers, strict=True):
            np.testing.assert_array_equal(reader.read((0, 0), 512, 0.25), written[:, :512])


def test_planes_are_found_where_the_file_does_not_count_them(tmp_path: Path) -> None:
    file = write_instance(tmp_path / "a.dcm", PLANES, 0.25, SERIES, Z_UM, sparse=True)
    data = pydicom.dcmread(file)
    del data.TotalPixelMatrixFocalPlanes
    data.save_as(file)
    openslide.OpenSlide(file).close()  # which shows one of them
    assert dicom_planes(file) == Z_UM


def test_levels_without_all_planes_are_not_read(tmp_path: Path) -> None:
    write_instance(tmp_path / "fine.dcm", PLANES, 0.25, SERIES, Z_UM)
    write_instance(tmp_path / "coarse.dcm", [halved(PLANES[1])], 0.5, SERIES, Z_UM[1:2], derived=True)
    with open_planes(tmp_path) as planes:
        for written, reader in zip(PLANES, planes.readers, strict=True):
            assert reader.level_sizes == ((704, 512),)
            np.testing.assert_array_equal(reader.read((0, 0), 256, 0.5), halved(written)[:, :256])


@pytest.mark.parametrize("xy", [(-40, -24), (600, 450), (9000, 0), (0, -600), (-300, 100)])
def test_what_lies_outside_is_white(tmp_path: Path, xy: tuple[int, int]) -> None:
    file = write_instance(tmp_path / "a.dcm", PLANES, 0.25, SERIES, Z_UM)
    wide = np.full((3000, 12_000, 3), 255, np.uint8)
    wide[1000:1512, 1000:1704] = PLANES[1]
    x, y = xy[0] + 1000, xy[1] + 1000
    source = DicomSource(file, 5.5)
    np.testing.assert_array_equal(source.region(xy, 0, (500, 300)), wide[y : y + 300, x : x + 500])
    source.close()


@pytest.mark.parametrize(("sparse", "form"), list(product([False, True], get_args(Form))))
def test_one_plane_is_left_to_openslide(tmp_path: Path, sparse: bool, form: Form) -> None:
    folder = write_slide(tmp_path / "slide", 1, sparse=sparse, form=form)
    with open_planes(folder) as planes:
        (reader,) = planes.readers
        assert (planes.z_um, reader.engine, round(reader.mpp, 6)) == ((0.0,), "openslide", 0.25)
        assert reader.level_sizes == ((704, 512), (352, 256), (176, 128))
        for mpp, wanted in ((0.25, PLANES[0]), (0.5, halved(PLANES[0])), (1.0, halved(halved(PLANES[0])))):
            got = reader.read((0, 0), len(wanted), mpp).astype(float)
            assert np.abs(got - wanted[:, : len(wanted)]).mean() < (1.5 if form == "jpeg" else 1e-9)


@pytest.mark.parametrize("instances", [1, 3])
def test_slides_of_one_or_several_instances_are_tiled(tmp_path: Path, instances: int) -> None:
    folder = write_slide(tmp_path / "slide", 1)
    if instances == 1:
        (folder / "1.dcm").unlink()
        (folder / "2.dcm").unlink()
    (tmp_path / "slides.csv").write_text("slide_id,path\na,slide\n")
    assert tile(tmp_path / "slides.csv", tmp_path / "out", area="all", size_px=100, tile_mpp=0.5, workers=1) == 0
    told = json.loads((tmp_path / "out/a/slide.json").read_text())
    assert told["counts"]["tiles"] == 3 * 2
    assert (told["format"], round(told["mpp"], 6)) == ("dicom", 0.25)
    assert [level["size_px"] for level in told["levels"]] == [[704, 512], [352, 256], [176, 128]][:instances]


@pytest.mark.parametrize("z", ["all", 7.0])
def test_planes_become_tiles(tmp_path: Path, z: Focus) -> None:
    write_slide(tmp_path / "slide", 3)
    (tmp_path / "slides.csv").write_text("slide_id,path\na,slide\n")
    csv, out = tmp_path / "slides.csv", tmp_path / "out"
    assert tile(csv, out, area="all", size_px=200, tile_mpp=0.25, quality=95, z=z, workers=1) == 0
    with tarfile.open(out / "a/a-000000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    abouts = {name.removesuffix(".json"): json.loads(files[name]) for name in files if name.endswith(".json")}
    assert len(abouts) == 3 * 2 * (3 if z == "all" else 1)
    for name, about in abouts.items():
        x, y, plane = about["x_level0"], about["y_level0"], PLANES[Z_UM.index(about["z"])]
        got = simplejpeg.decode_jpeg(files[f"{name}.jpg"]).astype(float)
        assert np.abs(got - plane[y : y + 200, x : x + 200]).mean() < 2


def test_real_pixels_are_those_of_openslide(shared_data: Path) -> None:
    folder = shared_data / "slides" / "CMU-1-Small-Region-dicom"
    assert dicom_planes(folder) == (0.0,)
    source = DicomSource(folder, 0.0)
    with open_slide(folder) as reader:
        assert (source.level_sizes, source.mpp_xy) == (reader.level_sizes, (reader.mpp, reader.mpp))
        got = source.region((1000, 1000), 0, (500, 500)).astype(float)
        assert np.abs(got - reader.read((1000, 1000), 500, reader.mpp)).max() <= 3
    source.close()


def test_slides_in_one_folder_are_kept_apart(tmp_path: Path) -> None:
    write_instance(tmp_path / "a.dcm", [picture((900, 900), 9)], 0.25, SERIES + ".2")
    write_instance(tmp_path / "b.dcm", PLANES, 0.25, SERIES, Z_UM)
    (tmp_path / "notes.txt").write_text("planes\n" * 50)
    (tmp_path / "short.dcm").write_bytes(b"")
    assert dicom_planes(tmp_path / "a.dcm") == dicom_planes(tmp_path) == (0.0,)
    assert dicom_planes(tmp_path / "b.dcm") == Z_UM


def test_other_formats_import_nothing(small_slide: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    paths = [str(small_slide.path), str(tmp_path / "gone.svs"), str(tmp_path / "empty")]
    code = (
        "import sys; from pathlib import Path; from papsmear.tiling.planes import dicom_planes\n"
        "assert all(dicom_planes(Path(path)) == () for path in sys.argv[1:])\n"
        "print([name for name in ('pydicom', 'wsidicom') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def read_all(path: Path) -> None:
    with open_planes(path) as planes:
        for reader in planes.readers:
            reader.read((0, 0), 704, 0.25)


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("part", [0.0003, 0.001, 0.01, 0.5, 0.9])
def test_an_instance_cut_short_is_named(tmp_path: Path, form: Form, part: float) -> None:
    file = write_instance(tmp_path / "cut.dcm", PLANES, 0.25, SERIES, Z_UM, form=form)
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match=r"^[^\n]*cut\.dcm[^\n]*$"):
        read_all(file)


def test_an_overwritten_tile_is_named(tmp_path: Path) -> None:
    file = write_instance(tmp_path / "a.dcm", PLANES, 0.25, SERIES, Z_UM, form="jpeg")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.dcm: damaged.*plane 5\.5 µm, level 0"):
        read_all(file)


def test_an_instance_that_wsidicom_does_not_know_is_named(tmp_path: Path) -> None:
    write_slide(tmp_path / "slide", 3)
    file = tmp_path / "slide" / "2.dcm"
    data = pydicom.dcmread(file)
    del data.ImageType
    data.save_as(file)
    with pytest.raises(InputError, match=r"cannot read 2\.dcm of the DICOM slide"):
        open_planes(tmp_path / "slide")


def test_planes_without_their_distance_are_an_error(tmp_path: Path) -> None:
    file = write_instance(tmp_path / "a.dcm", PLANES, 0.25, SERIES, Z_UM)
    data = pydicom.dcmread(file)
    del data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    data.save_as(file)
    with pytest.raises(InputError, match=r"a\.dcm: its focal planes cannot be told apart"):
        open_planes(file)
