"""Libraries that depend on llama-cpp-python, from the package index, in an environment of their own."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.network]

#: Each function of clients.py, and what it needs.
CLIENTS = {
    "langchain_completions": "langchain-community", "langchain_chats": "langchain-community",
    "langchain_vectors": "langchain-community", "lm_format_enforcer": "lm-format-enforcer", "instructor": "instructor",
    "llguidance": "llguidance",
}  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with these libraries, which finds this package where the tests do."""
    folder = tmp_path_factory.mktemp("clients") / "env"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    packages = Path(
        subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
    )
    (packages / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for _ in range(3):  # registries can fail once
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *sorted(set(CLIENTS.values())), "openai"], capture_output=True, text=True
        )
        if done.returncode == 0:
            return python
    pytest.fail(f"pip: {done.stderr[-1000:]}")


@pytest.mark.offers(*sorted(set(CLIENTS.values())), how="same", note="the library runs unchanged")
@pytest.mark.parametrize("name", CLIENTS)
def test_clients(environment, smollm2, name):
    script = Path(__file__).with_name("clients.py")
    done = subprocess.run(
        [environment, "-W", "ignore", script, name, smollm2], capture_output=True, text=True, timeout=300, cwd=environment.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
