"""Builds the SM 12.0 package, runs the tests inside it and looks at its size, unless its inputs were inspected before.

The inputs' digest is in .ci/inspected; `python .ci/inspect_cuda.py --record` builds, tests and writes it anew, `--due` only
tells by its exit status (0) whether it would build.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from distribution.packaging import build, inputs  # noqa: E402

RECORD = ROOT / ".ci" / "inspected"
LARGEST = 30_000_000
"""Bytes that the plugin for one architecture may have, packed."""


def check_size(package: Path) -> None:
    """End with a message if a package is larger than what was promised."""
    size = package.stat().st_size
    if size > LARGEST:
        sys.exit(f"{package.name} has {size / 1e6:.1f} MB, more than the {LARGEST / 1e6:.0f} MB it may have")


def main() -> int:
    digest = inputs.digest_of(inputs.INSPECTED)
    recorded = RECORD.read_text().split()[0] if RECORD.exists() else "nothing"
    if "--due" in sys.argv:
        return int(digest == recorded)
    if digest == recorded and "--record" not in sys.argv:
        print(f"the SM 12.0 package was inspected with these inputs ({digest})")
        return 0
    print(f"the inputs of the SM 12.0 package are {digest}, inspected were {recorded}: building it")
    # built anew: a file from before would be taken as it is, and its tests be called passed
    built = build.build([], build.dependencies(cuda=True), only=["libllama", "libggml-cuda"], rebuild=True)
    plugin = built[-1]
    print(f"{plugin.name}: {plugin.stat().st_size / 1e6:.1f} MB, its tests passed")
    check_size(plugin)
    if "--record" in sys.argv:
        RECORD.write_text(f"{digest}  {plugin.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
