"""Every exception of this package."""

from __future__ import annotations


class DistributionError(Exception):
    """Something that a person can put right.

    Attributes:
        message: what is wrong, in one or a few lines.
        remedy: what to do about it; may be empty.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class PinError(DistributionError, ValueError):
    """A file of pins is missing, malformed or lacks a key; or an archive has not what its pin says."""


class DownloadError(DistributionError, OSError):
    """pip or git could not fetch a file."""


class HashMismatchError(DistributionError, ValueError):
    """A file is not the one that was pinned."""


class UnsafeArchiveError(DistributionError, ValueError):
    """A member of an archive would be written outside the folder it is unpacked to."""


class TreeMismatchError(DistributionError, ValueError):
    """Unpacked files are not the pinned git tree."""


class PatchError(DistributionError, ValueError):
    """A patch has no header, does not apply, or changes nothing."""


class DirtySourceError(DistributionError):
    """The unpacked source was edited, and would be overwritten.

    Attributes:
        files: paths that differ, as far as that is known.
    """

    def __init__(self, message: str, remedy: str, files: list[str]) -> None:
        super().__init__(message, remedy)
        self.files = files


class SourceNotFoundError(DistributionError, FileNotFoundError):
    """There is no llama.cpp source where it should be."""


class ToolNotFoundError(DistributionError, FileNotFoundError):
    """A program or Python package that this step needs is not installed."""


class HeaderError(DistributionError, ValueError):
    """A C header could not be parsed."""


class BindingsError(DistributionError):
    """The bindings generator failed."""


class DiskSpaceError(DistributionError, OSError):
    """The file system has too little free space."""


class ToolkitError(DistributionError):
    """The CUDA toolkit could not be assembled, or is damaged."""
