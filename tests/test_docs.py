"""What the pages of the documentation show runs, and what they point to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Blocks marked `py` are shown and not run: they need something that is not here.
RUN = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([\w./-]+\.(?:md|rst))(?:#[\w-]+)?\)")
WITH_CODE = [page for page in PAGES if RUN.search(page.read_text(encoding="utf-8"))]

if not PAGES:
    pytest.skip(
        "The sources of the documentation are not here.", allow_module_level=True
    )


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    names = {}  # a page takes nothing as given
    for block in RUN.finditer(text):
        # Blank lines first, so that a traceback has the line of the page.
        line = text.count("\n", 0, block.start(1))
        code = compile("\n" * line + block[1], str(page), "exec")
        try:
            exec(code, names)
        except ModuleNotFoundError as error:
            if error.name.startswith("skclip_icm"):
                raise
            pytest.skip(f"needs {error.name}")
    pyplot.close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_links_to_pages_that_exist(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        path = Path(target)
        if path.parts[0] == "auto_examples":  # made from docs/examples by the build
            made = path.stem == "index"
            path = page.parent / "examples" / f"{path.stem}.py"
            assert made or path.exists(), f"{page.name}: {target}"
        else:
            assert (page.parent / path).exists(), f"{page.name}: {target}"


def test_every_page_is_in_a_table_of_contents():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    listed = re.findall(r"^([a-z_]+)$", text, re.MULTILINE)
    missing = {page.stem for page in PAGES} - {"index"} - set(listed)
    assert not missing, f"in no toctree: {sorted(missing)}"


def test_every_benchmark_is_in_the_table():
    about = (ROOT / "docs" / "about.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(re.findall(r"^\| `(\w+\.py)`", about, re.MULTILINE)) == scripts


def test_citation_names_the_authors_of_the_citation_file():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "about.md").read_text(encoding="utf-8")
    for name in re.findall(r"family-names: (\w+)", citation):
        assert f"{name}, " in page


def test_tests_that_the_security_page_names_exist():
    named = re.findall(
        r"`(\w+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    )
    assert named
    for name, test in named:
        source = (ROOT / "tests" / name).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{name}::{test}"
