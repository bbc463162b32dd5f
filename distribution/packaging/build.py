"""Runs the recipe. Compiles at one constant path, because compilers write paths into what they make."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .. import toolkit, vendor
from ..console import megabytes, say
from ..errors import BuildError, DamagedPackageError, DiskSpaceError
from ..fetching import answers
from ..files import REPOSITORY, cache_dir, load_yaml, locked, made_folder, read_regular, remove_tree
from ..install import find_ccache
from ..pin import Pin
from ..progress import Bar
from . import inputs
from .normalise import normalise

# The same on every machine, or two machines would build different bytes.
ROOT = Path("/tmp/llama-cpp-build")
OUTPUT = REPOSITORY / "dist" / "packages"
CPU_ONLY = "cpu"
_LARGEST_VARIANTS = 1 << 20
_STEP = re.compile(r"\[(\d+)/(\d+)\]")


def build(
    variants: Sequence[str] = (),
    channels: Sequence[str] = (),
    output: Path = OUTPUT,
    repository: Path = REPOSITORY,
    test: bool = True,
    rebuild: bool = False,
    only: Sequence[str] = (),
    compiler_cache: Path | None = None,
) -> list[Path]:
    """Build the recipe's packages into ``output``; those that are there already, from the same sources, are kept.

    Args:
        variants: names of files in ``recipe/variants/``, such as ``cpu`` or ``90a``; empty is ``recipe/variants.yaml``.
        channels: where dependencies come from: names, addresses or folders.
        repository: the checkout to build.
        test: run the tests inside each package on what was built.
        rebuild: build also what is there.
        only: names of packages; empty means all. What they depend on is taken from ``output``.
        compiler_cache: where ccache keeps its answers (default: where it always does).

    Returns:
        The packages' files, in the order in which they depend on one another.

    Raises:
        BuildError: no program can run where packages are built, ``output`` cannot be written to, the recipe cannot be
            rendered, a build or a test failed.
        DownloadError, HashMismatchError, TreeMismatchError: the engine's source could not be had.
        DamagedPackageError: a package that is there is damaged.
    """
    check_root()
    _check_variables()
    _check_names(output, repository, *channels)
    with ExitStack() as held:
        held.enter_context(_writable(output))
        fetch_engine(repository)
        workspace = held.enter_context(_workspace())
        # the recipe reads the environment when it is rendered
        held.enter_context(_build_environment(compiler_cache))
        inputs.export(workspace / "repository", repository)
        rendered = render(variants, workspace / "repository", seeded_variants(channels))
        built: list[Path] = []
        for one in rendered:
            name = one.recipe.package.name
            kept = output / _subdir(one) / f"{name}-{one.recipe.package.version}-{one.recipe.build.string}.conda"
            if only and name not in only:
                if kept.exists():
                    _offer(kept, workspace)
                continue
            if kept.exists() and not rebuild:
                say(f"{kept.name}: built before from the same sources")
                _offer(kept, workspace)
            else:
                _build_one(one, channels, workspace, kept, test)
            built.append(kept)
        return built


def fetch_engine(repository: Path = REPOSITORY) -> None:
    """Make the engine's source the pinned one. Of a checkout in ``$LLAMA_CPP_SOURCE_DIR`` that commit is taken, and no edit.

    Raises:
        DownloadError, HashMismatchError, TreeMismatchError: it could not be had.
        DirtySourceError: what is there was edited.
    """
    checkout = os.environ.get(vendor.OVERRIDE)
    if checkout:
        say(f"packages are made of the pinned llama.cpp: of {checkout} that commit is taken, and nothing else that is there")
    with _variables({vendor.OVERRIDE: None}):
        vendor.vendor(repository / "vendor" / "llama.cpp", from_git=checkout or None)


def dependencies(cuda: bool) -> list[str]:
    """Where dependencies come from: conda-forge, or a channel seeded from this machine and the Python package index.

    Raises:
        DistributionError: neither can be had.
    """
    if conda_forge_answers():
        return ["conda-forge"]
    from ..seed import seed

    say("conda-forge is out of reach: seeding a channel from this Python, this compiler and wheels")
    return [str(seed(cuda=cuda))]


def toolkits() -> list[str] | None:
    """The CUDA versions that ``dependencies`` can offer; None stands for all, as on conda-forge.

    Raises:
        PinError: the seed's toolkit is not pinned as it should be.
    """
    if conda_forge_answers():
        return None
    return [".".join(toolkit.Pins.load().cuda.split(".")[:2])]


def conda_forge_answers(timeout: float = 5.0) -> bool:
    """Whether the channel conda-forge can be reached within ``timeout`` seconds."""
    from rattler import Channel

    return answers(f"{Channel('conda-forge').base_url}noarch/repodata.json.zst", timeout)


def seeded_variants(channels: Sequence[str]) -> dict[str, list[str]]:
    """The compilers that a seeded channel among ``channels`` offers, as variant keys; nothing for other channels."""
    from ..seed.channel import variants

    return {key: values for folder in filter(_is_seed, channels) for key, values in variants(Path(folder)).items()}


def _is_seed(channel: str) -> bool:
    from ..seed.channel import RECORD

    return Path(channel, RECORD).exists()


def _names(channels: Sequence[str]) -> dict[str, str]:
    """What stands in packages for channels that are folders.

    A seed with CUDA in it makes the same ``libllama`` as one without.
    """
    return {channel: "seed" if _is_seed(channel) else Path(channel).name for channel in channels if os.path.isdir(channel)}


def render(
    variants: Sequence[str] = (), repository: Path = REPOSITORY, compilers: Mapping[str, list[str]] | None = None
) -> list[Any]:
    """The recipe's packages, as py-rattler-build's ``RenderedVariant``, in the order in which they are built.

    Args:
        variants: names of files in ``recipe/variants/``.
        compilers: variant keys that overrule the files, for other compilers than conda-forge's.

    Raises:
        BuildError: there is no such variant, its CUDA version is not the one that ``compilers`` has, or the recipe is wrong.
    """
    import rattler_build as engine

    recipe = repository / "recipe"
    files = [recipe / "variants.yaml"]
    for name in variants:
        file = recipe / "variants" / f"{name}.yaml"
        if not file.exists():
            known = ", ".join(sorted(path.stem for path in (recipe / "variants").glob("*.yaml")))
            raise BuildError(f"there is no variant {name!r}", f"choose one of: {known}")
        files.append(file)
    _check_toolkit(files, compilers or {})
    digests = {f"{name}_inputs": digest for name, digest in inputs.digests(repository).items()}
    try:
        chosen = engine.VariantConfig.from_file(files[0])
        for file in files[1:]:
            chosen = chosen.merge(engine.VariantConfig.from_file(file))
        overruled = {**(compilers or {}), **{key: [value] for key, value in digests.items()}}
        chosen = chosen.merge(engine.VariantConfig(overruled))
        return engine.Stage0Recipe.from_file(recipe / "recipe.yaml").render(chosen)
    except engine.RattlerBuildError as error:
        raise BuildError(f"the recipe cannot be rendered: {error}", "see recipe/recipe.yaml") from error


def _check_toolkit(files: Sequence[Path], compilers: Mapping[str, list[str]]) -> None:
    # else the engine is built, and only then the solver says in its way that there is no such toolkit
    named = [value for file in files if (value := _load_variants(file).get("cuda_version"))]
    wanted = named[-1] if named else "none"
    offered = compilers.get("cuda_compiler_version", [wanted])
    if wanted not in (*offered, "none"):
        raise BuildError(
            f"this variant is compiled with CUDA {wanted}, and the seeded channel has {', '.join(offered)}",
            "build it where conda-forge can be reached, or choose another variant",
        )


def variant_files(cuda: str, architectures: Sequence[str], repository: Path = REPOSITORY) -> list[str]:
    """The names of the variant files that build for a CUDA version and architectures; none means ``variants.yaml`` alone.

    Raises:
        BuildError: no file does.
    """
    recipe = repository / "recipe"
    defaults = _load_variants(recipe / "variants.yaml")
    choices: dict[tuple[str, ...], dict[str, str]] = {(): {}}
    choices |= {(file.stem,): _load_variants(file) for file in sorted((recipe / "variants").glob("*.yaml"))}
    for names, overruled in choices.items():
        chosen = {**defaults, **overruled}
        built = chosen.get("cuda_version"), _plain(chosen.get("cuda_architectures", "").split())
        if built == (cuda, _plain(architectures)):
            return list(names)
    raise BuildError(
        f"no variant is for CUDA {cuda} and {' '.join(architectures)}",
        "add a file to recipe/variants/, as docs/guides/conda.md says",
    )


def _load_variants(file: Path) -> dict[str, str]:
    """The keys of a variant file, each with its first value; BuildError if it is damaged."""
    try:
        found = load_yaml(read_regular(file, _LARGEST_VARIANTS), _LARGEST_VARIANTS)
    except (OSError, ValueError) as error:
        raise BuildError(f"{file} cannot be read: {error}", f"restore it: git checkout -- recipe/{file.name}") from None
    if not isinstance(found, dict) or not all(isinstance(values, list) for values in found.values()):
        raise BuildError(f"{file} has not a list for each key", "see recipe/variants.yaml in the repository")
    return {str(key): str(values[0]) for key, values in found.items() if values}


def _plain(architectures: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.removesuffix("-real") for name in architectures)


def timestamp(repository: Path = REPOSITORY) -> int:
    """The time stamped into packages, in seconds since 1970: the day of the pinned llama.cpp."""
    date = datetime.fromisoformat(Pin.load(repository / "vendor" / "llama.cpp" / "pin.toml").date)
    return int(date.replace(tzinfo=timezone.utc).timestamp())


def _subdir(one: Any) -> str:
    return "noarch" if one.recipe.build.noarch else "linux-64"


def _build_one(one: Any, channels: Sequence[str], workspace: Path, target: Path, test: bool) -> None:
    import rattler_build as engine

    started = time.monotonic()
    name = one.recipe.package.name
    log = REPOSITORY / "build" / f"package-{name}.log"
    log.parent.mkdir(exist_ok=True)
    with Bar(name) as bar, log.open("w", encoding="utf-8") as record:
        try:
            result = one.run_build(
                tool_config=engine.ToolConfiguration(
                    test_strategy="native" if test else "skip", error_prefix_in_binary=True, use_sharded=False
                ),
                output_dir=workspace / "output",
                channels=[str(workspace / "output"), *channels],
                progress_callback=_Progress(bar, record),
                no_build_id=True,
            )
        except engine.RattlerBuildError as error:
            tail = log.read_text(encoding="utf-8").splitlines()[-25:]
            raise BuildError(
                f"{name} could not be built: {error}\n" + "\n".join(f"    {line}" for line in tail),
                f"the whole log is in {log}",
            ) from error
    made = Path(result.packages[0])
    normalise(made, timestamp(workspace / "repository"), _names(channels))
    _index(workspace)
    _deliver(made, target)
    say(f"{target.name}: {megabytes(target.stat().st_size)} in {time.monotonic() - started:.0f} s")


def check_root() -> None:
    """Raise BuildError if no program can run where packages are built: better now than after minutes."""
    folder = ROOT.parent
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise BuildError(
            f"no program can run in {folder}, where every machine builds packages (it is mounted with noexec)",
            f"have it mounted without that for a while: sudo mount -o remount,exec {folder}",
        )


def _check_variables() -> None:
    """Raise BuildError for a variable that is no Unicode: the build engine reads all of them, and panics."""
    for name, value in os.environ.items():
        if not _is_unicode(name + value):
            remedy = f"unset {ascii(name)[1:-1]}, or give it another value"
            raise BuildError(f"the variable {ascii(name)[1:-1]} is not UTF-8: {value!a:.200}", remedy)


def _check_names(*names: object) -> None:
    """Raise BuildError for a folder or a channel whose name is no Unicode: the build engine takes no other."""
    for name in map(str, names):
        if not _is_unicode(name):
            raise BuildError(f"{name!a} is not UTF-8", "give it another name: the build engine takes no such one")


def _is_unicode(text: str) -> bool:
    """Whether all bytes of what the system handed in were UTF-8; Python has the others as half of a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


@contextmanager
def _writable(output: Path) -> Iterator[None]:
    """A folder that is gone again after an error if it is empty; BuildError if nothing can be written to it.

    Better now than after the first compile.
    """
    with ExitStack() as held:
        try:
            held.enter_context(made_folder(output))
            tempfile.TemporaryFile(dir=output).close()
        except OSError as error:
            raise _unwritable(output, error) from None
        yield


def _deliver(made: Path, target: Path) -> None:
    """Copy a package to where it is wanted: the whole of it, or BuildError and nothing."""
    temporary = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(target, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _unwritable(path: Path, error: OSError) -> BuildError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return BuildError(
        f"{path} cannot be written: {error.strerror}",
        ("free some space there, or " if full else "") + "name another folder: --output",
    )


class _Progress:
    """Writes what the build says to a log, and moves the bar when it counts its steps."""

    def __init__(self, bar: Bar, record: Any) -> None:
        self._bar, self._record = bar, record

    def on_log(self, event: Any) -> None:
        self._record.write(event.message + "\n")
        self._record.flush()
        if step := _STEP.search(event.message):
            self._bar.update(int(step[1]), int(step[2]))

    def on_build_step(self, event: Any) -> None:
        self._record.write(f"== {event.step_name}: {event.message}\n")

    def on_download_start(self, event: Any) -> None: ...

    def on_download_progress(self, event: Any) -> None: ...

    def on_download_complete(self, event: Any) -> None: ...


@contextmanager
def _workspace() -> Iterator[Path]:
    """The constant folder, empty, for one build at a time; BuildError if it is somebody else's."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(ROOT.with_name(f"{ROOT.name}.lock"), "building packages", for_everybody=True))
            ROOT.mkdir(mode=0o700, exist_ok=True)
            if ROOT.is_symlink() or ROOT.lstat().st_uid != os.getuid():
                raise BuildError(f"{ROOT} belongs to somebody else", f"let its owner remove it: rm -r {ROOT}")
            for child in ROOT.iterdir():
                remove_tree(child) if child.is_dir() else child.unlink()
        except PermissionError as error:
            place = error.filename or ROOT
            raise BuildError(
                f"{place} cannot be used: {error.strerror}",
                f"it is where every machine builds; let its owner remove it: rm -r {place}",
            ) from None
        try:
            yield ROOT
        finally:
            remove_tree(ROOT)


def _offer(package: Path, workspace: Path) -> None:
    """Let the builds that follow depend on a package that was built before.

    Raises:
        DamagedPackageError: it is damaged by now.
    """
    # the indexer would end with a panic, or take it
    from ..channel.package_file import inspect

    remedy = f"remove {package}, and build again"
    try:
        inspect(package, scratch=workspace)
    except DiskSpaceError:
        raise
    except DamagedPackageError as error:
        raise DamagedPackageError(error.message, remedy) from None
    except OSError as error:
        raise DamagedPackageError(f"{package} cannot be read: {error.strerror}", remedy) from None
    place = workspace / "output" / package.parent.name / package.name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package, place)
    _index(workspace)


def _index(workspace: Path) -> None:
    """Write the index anew: the packages that follow note the hashes in it, and the build engine's is older than ours."""
    from ..rattler_async import index_channel

    index_channel(workspace / "output", force=True)


@contextmanager
def _build_environment(compiler_cache: Path | None) -> Iterator[None]:
    """What the recipe reads from the environment, set for a while."""
    wanted: dict[str, str | None] = {
        "LLAMA_CPP_CACHE": str(cache_dir()),
        # in the workspace: gone after the build, and the same path on every machine
        "LLAMA_CPP_STAGED": str(ROOT / "staged"),
        # the source is in the workspace
        vendor.OVERRIDE: None,
        "CCACHE": find_ccache() or "",
        "CCACHE_DIR": str(compiler_cache) if compiler_cache else os.environ.get("CCACHE_DIR"),
    }
    # the build engine hides what is secret, and would find an empty text everywhere
    empty = {name: None for name, value in os.environ.items() if name.startswith("PIP_") and not value}
    with _variables({**wanted, **empty}):
        yield


@contextmanager
def _variables(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables, set for a while; None stands for one that is not set."""
    before = {name: os.environ.get(name) for name in wanted}
    try:
        _set(wanted)
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
