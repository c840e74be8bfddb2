"""Goes through a folder and says of everything in it what it is."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ddm_fed.errors import FileSetError, printable
from ddm_fed.storage.files import open_regular
from sites.data.dicom import AT, MAGIC, is_dicom
from sites.data.dicom import SUFFIXES as DICOM_SUFFIXES
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
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "holdout"}
MASK_FOLDERS = {"mask", "masks", "segmentation", "segmentations", "annotation", "annotations"}
MASK_NAME = re.compile(
    r"(?P<of>.+)[-_. ](?:mask|masks|seg|segmentation|annotation|gt|roi)(?:[-_. ]?\d+)?"
)
LINKS = "links were not followed"
JUNK_LEFT_OUT = "hidden or left by a file manager"


@dataclass
class Folder:
    """What lies in a folder and below, each file as what its name or its beginning says it is.

    Links are never followed: they may lead out of the folder to images that nobody agreed on, or to
    the same image a second time.

    Attributes:
        path: The folder.
        pictures: Image files, in the order of their paths.
        dicom: DICOM files.
        shards: `.tar` files.
        parquet: `.parquet` files.
    """

    path: Path
    pictures: list[Path] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    _other: list[Path] = field(default_factory=list)
    _seen: DataReport = field(default_factory=lambda: DataReport(""))
    _lost: set[str] = field(default_factory=set)

    @classmethod
    def survey(cls, path: Path) -> Self:
        """Goes through the folder; what is taken of it is for the caller to decide."""
        found = cls(path)
        for file in _everything(path, found._seen, found._lost):
            found._of_kind(file).append(file)
        for files in (found.pictures, found.dicom, found.shards, found.parquet):
            files.sort()
        return found

    def _of_kind(self, file: Path) -> list[Path]:
        suffix = _suffix(file)
        if suffix in SUFFIXES and file.suffix.lower() != ".gz":
            return self.pictures
        if suffix in DICOM_SUFFIXES or _is_dicom(file):
            return self.dicom
        return {".tar": self.shards, ".parquet": self.parquet}.get(suffix, self._other)

    def note(self, report: DataReport, taken: Sequence[Path]) -> None:
        """Notes everything but the files `taken`, and what of it looks like a mistake."""
        report.seen += self._seen.seen
        for reason, names in self._seen.left_out.items():
            for name in names:
                report.leave_out(reason, name)
        chosen, lost = set(taken), set(self._lost)
        for files, what in (
            (self.pictures, "images beside files of the kind that was asked for"),
            (self.dicom, ""),
            (self.shards, ""),
            (self.parquet, ""),
            (self._other, ""),
        ):
            for path in files:
                if path in chosen:
                    continue
                suffix = _suffix(path)
                reason = what or f"{suffix or 'other'} files are not images"
                if suffix in NOT_READ or files is self.dicom:
                    kind = suffix if suffix in NOT_READ else "DICOM"
                    lost.add(reason := f"{kind} files are of a kind that is not read")
                report.leave_out(reason, _name(path, self.path))
        for reason in sorted(lost):
            names = report.left_out[reason]
            report.doubts.append(f"{len(names)} {reason}: {examples(names)}. {_advice(reason)}")


def _everything(folder: Path, report: DataReport, lost: set[str]) -> Iterator[Path]:
    """Yields every plain file below `folder` that is no junk."""
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
                yield path
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
        return is_dicom(file.read(AT + len(MAGIC)))  # scanners' files often have no suffix
    return False


def _advice(reason: str) -> str:
    if reason == LINKS:
        return "Put the files themselves there (cp -rL copies what links lead to)"
    if "opened" in reason:
        return "Give yourself the right to read them"
    if any(kind in reason for kind in ("DICOM", *DICOM_SUFFIXES)):
        return "Read them by themselves with --data dicom:FOLDER, or convert them"
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


def note_splits(names: Sequence[str], report: DataReport) -> None:
    """Notes shards whose names say that they are parts for training and for testing."""
    parts = {re.split(r"[-_.]", name)[0].lower() for name in names} & SPLITS
    if len(parts) > 1:
        report.doubts.append(
            f"shards are called {', '.join(sorted(parts))}, which look like parts for training and "
            "for testing, and all of them are taken; give --data those that are meant, for example "
            f"{min(parts)}-*"
        )


def class_folders_look_split(names: Sequence[str]) -> bool:
    """Returns whether folders where classes were expected are parts for training and testing."""
    return all(name.lower() in SPLITS for name in names)
