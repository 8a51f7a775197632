"""Images that rows of a raw set name, from a folder, from base64 or from a table."""

import base64
import binascii
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.images import MAX_IMAGE_BYTES
from shards.readers.base import ReaderOptions
from shards.sample import ImageExt

_FOLDERS_KNOWN = 10_000


@dataclass(frozen=True)
class ImageFolder:
    """The folder given with --images.

    A name is looked up as it is, then without its leading folders: LLaVA's `coco/train2017/1.jpg` is found below the
    root of all sets, of COCO, or of train2017. `folders` are places that a set is often unpacked to.
    """

    root: Path
    follow_links: bool = False
    folders: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: ReaderOptions, folders: tuple[str, ...] = ()) -> "ImageFolder":
        """The folder of the options; BadInput when there is none."""
        if options.images is None:
            raise BadInput("the set names images; give their folder with --images")
        if not options.images.is_dir():
            raise BadInput(f"--images {options.images}: not a folder")
        return cls(options.images, options.follow_links, folders)

    def read(self, name: Any) -> bytes:
        """The bytes of an image; BadInput when it is missing or lies outside the folder."""
        if not isinstance(name, str) or not name or "\0" in name or len(name) > 1000:
            raise BadInput(f"the image should be a path below --images, not {name!r:.100}")
        try:
            os.fsencode(name)
        except UnicodeEncodeError as error:
            raise BadInput(f"the image's path {name!r:.200} is not valid Unicode", "text") from error
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            raise BadInput(f"the image {name!r:.200} lies outside --images {self.root}", "image-missing")
        tails = ["/".join(parts[i:]) for i in range(len(parts))]
        for tail in (*tails, *(f"{folder}/{parts[-1]}" for folder in self.folders if parts)):
            try:
                data = self._read(f"{self.root}/{tail}")
            except OSError as error:
                why = f"cannot be read ({error.strerror})"
                raise BadInput(f"the image {name!r:.200} {why}", "image-missing") from error
            except _LeadsOut:
                why = "is a link out of --images; allow it with --follow-links"
                raise BadInput(f"the image {name!r:.200} {why}", "image-missing") from None
            if data is not None:
                return data
        raise BadInput(f"the image {name!r:.200} is not in --images {self.root}", "image-missing")

    def _read(self, path: str) -> bytes | None:
        """The bytes of a plain file, one more than the cap at most; None when there is no such file."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with open(fd, "rb") as handle:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            if not self.follow_links:
                self._check_inside(path)
            # one byte over the cap is refused as too large later
            return handle.read(min(status.st_size, MAX_IMAGE_BYTES) + 1)

    def _check_inside(self, path: str) -> None:
        real = os.path.realpath(path) if os.path.islink(path) else path
        if not self._is_inside(os.path.dirname(real)):
            raise _LeadsOut

    @cached_property
    def _is_inside(self) -> Callable[[str], bool]:
        """Whether a folder lies below the root, links followed; images lie in few folders."""
        root = os.path.realpath(self.root)
        return lru_cache(_FOLDERS_KNOWN)(lambda folder: os.path.commonpath((root, os.path.realpath(folder))) == root)


class _LeadsOut(Exception):
    pass


def image_extension(data: bytes) -> ImageExt:
    """What the first bytes say; the build checks the rest. BadInput when they say nothing."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    raise BadInput("the image is not a JPEG, PNG or WebP", "image")


def from_base64(text: Any) -> bytes:
    """Image bytes of a base64 cell."""
    if not isinstance(text, str) or len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise BadInput("the image should be base64 text of at most 64 MiB", "image")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"the image is not valid base64 ({error})", "image") from error


def from_cell(cell: Any, folder: ImageFolder | None = None) -> bytes | None:
    """Image bytes of a table's cell as `datasets` writes it: `{"bytes", "path"}`, bytes, a path, or nothing."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if cell is None or cell == "":
        return None
    if isinstance(cell, bytes):
        return cell
    if folder is None:
        raise BadInput("the row names an image file; give the folder with --images", "image-missing")
    return folder.read(cell)
