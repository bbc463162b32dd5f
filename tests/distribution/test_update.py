"""Moving the pin: the report on the C API, and what an update changes or leaves alone."""

from __future__ import annotations

import shutil
import sys

import pytest

from distribution import api_report, git_tree, update
from distribution.errors import BindingsError, DownloadError, PatchError, ToolNotFoundError, TreeMismatchError
from distribution.pin import Pin
from engine_carrier import ENGINE, HEADER, Setting, commit_engine, make_carrier, write_engine


def test_report_names_what_changed(tmp_path):
    pytest.importorskip("clang.cindex")
    old, new = write_engine(tmp_path / "old", ENGINE), write_engine(tmp_path / "new", ENGINE)
    assert api_report.compare(api_report.read_api(old), api_report.read_api(new)) == "the C API is unchanged"
    text = HEADER.replace("float scale;", "double scale; _Bool fast;").replace("void llama_free(void * pointer);", "")
    text = text.replace("LLAMA_KIND_B", "LLAMA_KIND_C") + "int llama_encode(const char * text, ...);\n"
    (new / "include/llama.h").write_text(text.replace("llama_decode(struct", "llama_decode(int flags, struct"))
    report = api_report.compare(api_report.read_api(old), api_report.read_api(new))
    for line in (
        "functions: 1 added, 1 removed, 1 changed",
        "+ int llama_encode(const char * text, ...)",
        "- void llama_free(void * pointer)",
        "becomes int llama_decode(int flags, struct llama_params params)",
        "+ llama_params.fast: _Bool (#3)",
        "~ llama_params.scale: float (#2)",
        "~ llama_params.i: int64_t (#3.#1)",
        "+ LLAMA_KIND_C: 1",
        "- LLAMA_KIND_B: 1",
    ):
        assert line in report, report


@pytest.fixture
def newer(setting) -> Setting:
    """The index also has release 1.1, whose engine has one more function."""
    contents = {**ENGINE, "include/llama.h": f"{HEADER}int llama_added(void);\n".encode()}
    setting.newer = commit_engine(setting.root / "newer", contents)
    make_carrier(setting.index, setting.root / "newer", contents, "1.1")
    return setting


def test_update(newer, capsys, tmp_path):
    pytest.importorskip("clang.cindex")
    newer.vendor()
    generator = tmp_path / "generate.py"
    generator.write_text("import pathlib, sys; pathlib.Path(__file__).with_name('ran').write_text(sys.argv[2])")
    before = (newer.folder / "pin.toml").read_text()
    update.update(newer.folder, "1.1", newer.cache, dry_run=True, generator=generator)
    assert (newer.folder / "pin.toml").read_text() == before and newer.status().current
    assert not (tmp_path / "ran").exists()
    pin = update.update(newer.folder, "1.1", newer.cache, generator=generator)
    assert "+ int llama_added(void)" in capsys.readouterr().out
    assert (pin.commit, pin.tree) == newer.newer and pin.carrier.version == "1.1" and len(pin.date) == 10
    assert Pin.load(newer.folder / "pin.toml") == pin and newer.status().current
    assert (tmp_path / "ran").read_text() == str(newer.folder / "source")
    shutil.rmtree(newer.folder / "source")
    newer.vendor()
    assert newer.status().tree == pin.tree


def test_update_reports_a_generator_that_fails(newer, tmp_path):
    pytest.importorskip("clang.cindex")
    generator = tmp_path / "generate.py"
    generator.write_text("raise SystemExit(3)")
    with pytest.raises(BindingsError) as caught:
        update.update(newer.folder, "1.1", newer.cache, generator=generator)
    assert str(generator) in caught.value.remedy and newer.status().current


def test_update_to_where_a_patch_does_not_apply_changes_nothing(newer):
    pytest.importorskip("clang.cindex")
    newer.patch(
        "Why: a test.\n\n--- a/include/llama.h\n+++ b/include/llama.h\n@@ -4,2 +4,3 @@\n"
        " int llama_decode(struct llama_params params);\n void llama_free(void * pointer);\n+int ours(void);\n"
    )
    source = newer.vendor()
    before = (newer.folder / "pin.toml").read_text(), git_tree.scan(source)
    with pytest.raises(PatchError, match="0001-greet"):
        update.update(newer.folder, "1.1", newer.cache)
    assert before == ((newer.folder / "pin.toml").read_text(), git_tree.scan(source)) and newer.leftovers() == []


def test_update_refuses_a_tree_that_is_not_its_commits(newer):
    pytest.importorskip("clang.cindex")
    make_carrier(newer.index, newer.root / "newer", ENGINE, "1.2")
    with pytest.raises(TreeMismatchError, match=newer.newer[1]):
        update.update(newer.folder, "1.2", newer.cache)
    with pytest.raises(DownloadError, match=r"9\.9"):
        update.update(newer.folder, "9.9", newer.cache)


def test_update_without_libclang_says_how_to_get_it(setting, monkeypatch):
    monkeypatch.setitem(sys.modules, "clang", None)
    with pytest.raises(ToolNotFoundError) as caught:
        update.update(setting.folder, "1.1", setting.cache)
    assert "pip install libclang" in caught.value.remedy
