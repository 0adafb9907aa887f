"""Every architecture of open_clip at full size, with random weights: pytest -m zoo."""

import pytest

pytestmark = pytest.mark.zoo
open_clip = pytest.importorskip("open_clip")


@pytest.mark.parametrize("name", open_clip.list_models())
def test_pictures_are_embedded_as_by_open_clip(
    name, import_benchmark, tmp_path, monkeypatch
):
    families = import_benchmark("families")
    monkeypatch.setenv("SKCLIP_ICM_MODELS", str(tmp_path / "converted"))
    [model] = [m for m in families.every_model() if m.partition(":")[0] == name]
    row = families.compare(model, tmp_path)
    if "skipped" in row:
        pytest.skip(row["skipped"])
    for backend in {"torch", "openvino"} & row.keys():
        assert row[backend] >= 0.99999, backend
