"""Goes through a folder and says of everything in it what it is."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ddm_fed.errors import FileSetError, printable
from ddm_fed.storage.files import open_regular
from sites.data.image_file import SUFFIXES
from sites.data.report import DataReport, examples

# What file managers and network drives leave behind, in lower case; so do names with a dot first.
JUNK = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found", "system volume information"),
    *("__macosx", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "$recycle.bin"),
}
# Images, volumes and arrays that are not read. Leaving them out loses data, so it is asked about.
NOT_READ = {
    *(".dcm", ".dicom", ".ima", ".nii", ".nrrd", ".mha", ".mhd", ".hdr", ".img", ".mnc", ".raw"),
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".svs", ".ndpi", ".mrxs", ".czi"),
    *(".lif", ".vsi", ".scn", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".tga", ".svg"),
    *(".eps", ".ps", ".ico", ".exr", ".pfm", ".dib", ".apng", ".npy", ".npz"),
}
DICOM_AT, DICOM = 128, b"DICM"  # files of scanners often have no suffix, or a number
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "holdout"}
MASK_FOLDERS = {"mask", "masks", "segmentation", "segmentations", "annotation", "annotations"}
MASK_NAME = re.compile(
    r"(?P<of>.+)[-_. ](?:mask|masks|seg|segmentation|annotation|gt|roi)(?:[-_. ]?\d+)?"
)
LINKS = "links were not followed"
JUNK_LEFT_OUT = "hidden or left by a file manager"


def image_files(folder: Path, report: DataReport) -> list[Path]:
    """Returns the image files in `folder` and below, in the order of their paths.

    Everything else is noted in `report`. Links are never followed: they may lead out of the folder
    to images that nobody agreed on, or to the same image a second time.
    """
    found = list[Path]()
    lost = set[str]()
    for path, name in _everything(folder, report, lost):
        suffix = _suffix(path)
        if suffix in SUFFIXES and path.suffix.lower() != ".gz":
            found.append(path)
        elif suffix in NOT_READ or _is_dicom(path):
            kind = suffix if suffix in NOT_READ else "DICOM"
            lost.add(reason := f"{kind} files are of a kind that is not read")
            report.leave_out(reason, name)
        else:
            report.leave_out(f"{suffix or 'other'} files are not images", name)
    for reason in sorted(lost):
        names = report.left_out[reason]
        report.doubts.append(f"{len(names)} {reason}: {examples(names)}. {_advice(reason)}")
    return sorted(found)


def _everything(folder: Path, report: DataReport, lost: set[str]) -> Iterator[tuple[Path, str]]:
    """Yields every plain file below `folder` that is no junk, and its name as it is shown."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            lost.add(reason := f"folders cannot be opened ({error.strerror})")
            report.leave_out(reason, f"{_name(here, folder)}/")
            report.seen += 1
            continue
        for entry in entries:
            path = Path(entry.path)
            name = _name(path, folder)
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(".") or entry.name.lower() in JUNK:
                report.leave_out(JUNK_LEFT_OUT, f"{name}/" if is_folder else name)
            elif entry.is_symlink():
                lost.add(LINKS)
                report.leave_out(LINKS, name)
            elif is_folder:
                waiting.append(path)
                continue
            elif entry.is_file(follow_symlinks=False):
                yield path, name
            else:
                report.leave_out("neither files nor folders", name)
            report.seen += 1


def _name(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder).as_posix())


def _suffix(path: Path) -> str:
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() if last == ".gz" else last  # volumes: .nii.gz


def _is_dicom(path: Path) -> bool:
    with suppress(OSError, FileSetError), open_regular(path) as file:
        return file.read(DICOM_AT + len(DICOM))[DICOM_AT:] == DICOM
    return False


def _advice(reason: str) -> str:
    if reason == LINKS:
        return "Put the files themselves there (cp -rL copies what links lead to)"
    if "opened" in reason:
        return "Give yourself the right to read them"
    return "Convert them, for example to PNG"


def note_suspects(
    folder: Path, files: Sequence[Path], classes: Sequence[str], report: DataReport
) -> None:
    """Notes image files in `folder` that are probably not meant: masks, and parts for testing."""
    folders = {path.parent for path in files}
    parts = {part for each in folders for part in each.relative_to(folder).parts} - set(classes)
    splits = sorted(part for part in parts if part.lower() in SPLITS)
    if len(splits) > 1:
        report.doubts.append(
            f"the folders {', '.join(map(printable, splits))} look like parts for training and for "
            "testing, and all of them are taken; give --data the one that is meant"
        )
    beside = {path.with_suffix("") for path in files}
    named = set(classes)
    masks = [
        _name(path, folder)
        for path in files
        if any(
            part.lower() in MASK_FOLDERS and part not in named
            for part in path.relative_to(folder).parts[:-1]
        )
        or (
            (match := MASK_NAME.fullmatch(path.stem.lower())) is not None
            and path.with_name(path.stem[: match.end("of")]) in beside
        )
    ]
    if masks:
        report.doubts.append(
            f"{len(masks)} files look like masks beside images, and are taken as images: "
            f"{examples(masks)}. Move them out of the folder if they are masks"
        )


def class_folders_look_split(names: Sequence[str]) -> bool:
    """Returns whether folders where classes were expected are parts for training and testing."""
    return all(name.lower() in SPLITS for name in names)
