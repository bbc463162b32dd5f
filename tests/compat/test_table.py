"""docs/reference/compatibility.md says what the tests here stand behind, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_tests_say():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "compatibility_table.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"run python tools/compatibility_table.py\n{done.stdout[-1000:]}{done.stderr[-1000:]}"


def test_every_name_of_the_issue_has_a_row():
    rows = (ROOT / "docs/reference/compatibility.md").read_text().splitlines()
    names = {row.split("`")[1] for row in rows if row.startswith("| `")}
    assert len(names) > 200 and {"Llama.eval", "LlamaGrammar.from_string", "llama_kv_self_clear", "Llava15ChatHandler"} <= names
    assert all(row.split("|")[2].strip() in ("same", "better", "other", "later") for row in rows if row.startswith("| `"))
