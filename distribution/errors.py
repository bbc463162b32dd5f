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


class SeedError(DistributionError):
    """The seed channel could not be made."""


class InterpreterError(SeedError):
    """The running Python cannot be made into a conda package."""


class DriverTooOldError(DistributionError):
    """The NVIDIA driver is too old for the CUDA version of a build."""


class EnvironmentFileError(DistributionError, ValueError):
    """An environment file or lock is missing, malformed, or asks for what cannot be done here."""


class EnvironmentExistsError(DistributionError, FileExistsError):
    """There is something where the environment would be made."""


class EnvironmentUnsolvableError(DistributionError):
    """No set of packages satisfies the environment file."""


class ChannelUnreachableError(DistributionError, OSError):
    """A channel could not be read."""


class EnvironmentInstallError(DistributionError, OSError):
    """The packages could not be installed."""


class UnsignedPackageError(DistributionError):
    """A configured key did not sign what a channel offers."""


class NoSignaturesError(UnsignedPackageError):
    """A key is configured, and what should be a channel has no signatures at all."""


class OlderGenerationError(DistributionError):
    """A channel offers an older generation than it did before, or what it offered cannot be told."""


class ProvenanceError(DistributionError, ValueError):
    """What a package was made from cannot be said."""


class BuildError(DistributionError):
    """The packages could not be built."""


class NotReproducibleError(BuildError):
    """A second build gave another package.

    Attributes:
        member: the first file inside that differs.
    """

    def __init__(self, message: str, remedy: str, member: str) -> None:
        super().__init__(message, remedy)
        self.member = member


class ChannelNotFoundError(DistributionError, FileNotFoundError):
    """There is no published channel where it should be."""


class ChannelNotWritableError(DistributionError, PermissionError):
    """The folder of a channel cannot be written to."""


class ChannelDamagedError(DistributionError, ValueError):
    """Files of a channel are missing or are not what its manifest lists."""


class PackageExistsError(DistributionError, FileExistsError):
    """The channel has a package of this file name with other content."""


class DamagedPackageError(DistributionError, ValueError):
    """A file is not a whole conda package."""


class CommitMismatchError(DistributionError, ValueError):
    """A package was built from another llama.cpp commit than the packages it belongs to."""


class UnsatisfiedPinError(DistributionError, ValueError):
    """A package is tied to a build that is not in the channel."""


class SigningKeyError(DistributionError, ValueError):
    """A key cannot be read, or is not an Ed25519 key."""


class BundleError(DistributionError, ValueError):
    """A file made by ``channel export`` is damaged or incomplete."""


class ServerError(DistributionError, OSError):
    """The channel cannot be served at the address asked for."""


class FetchError(ChannelUnreachableError):
    """A small file could not be fetched over HTTP.

    Attributes:
        status: the HTTP status that the server answered with; None where it did not answer.
    """

    def __init__(self, message: str, remedy: str, status: int | None = None) -> None:
        super().__init__(message, remedy)
        self.status = status


class HomeNotFoundError(DistributionError, RuntimeError):
    """A path begins with a user's home folder, and there is no such user, or nothing says where that is."""


class NotInstalledError(ToolNotFoundError):
    """A Python package that this command needs is not installed."""
