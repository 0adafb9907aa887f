"""What is shown and told while images are encoded."""

import ast
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import skclip_icm
from skclip_icm import CLIPFeaturizer, ICMTransformer, ZeroShotClassifier
from skclip_icm._encoding.progress import progress_bar, tell_callbacks
from skclip_icm._encoding.stores import open_cache

PACKAGE = Path(skclip_icm.__file__).parent
# The only modules that are programs: they print what they do.
PROGRAMS = {"demo/__main__.py", "demo/train_text_tower.py"}


@pytest.fixture(autouse=True)
def nothing_cached():
    open_cache(None).clear()


def images_and_icm():
    return make_pipeline(CLIPFeaturizer("demo"), ICMTransformer(), LogisticRegression())


def test_quiet_by_default(photographs, capsys):
    images_and_icm().fit(photographs, [0, 1] * 3)
    assert capsys.readouterr() == ("", "")


def test_bar_has_rate_and_time_left(capsys):
    with progress_bar("CLIPFeaturizer", 100, verbose=True) as bar:
        bar.begin()
        bar.update(40)
        bar.update(60)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "CLIPFeaturizer: 100%" in last
    assert "100/100" in last
    assert "img/s" in last
    assert "<" in last  # time taken < time left


def test_nothing_is_shown_where_all_is_in_the_cache(photographs, capsys):
    featurizer = CLIPFeaturizer("demo", verbose=True)
    featurizer.transform(photographs)
    assert "6/6" in capsys.readouterr().err
    featurizer.transform(photographs)
    assert capsys.readouterr() == ("", "")


def test_rate_is_in_the_log(photographs, caplog):
    with caplog.at_level(logging.INFO, logger="skclip_icm"):
        CLIPFeaturizer("demo").transform(photographs)
    assert "CLIPFeaturizer: encoded 6 images in" in caplog.text
    assert "a second" in caplog.text
    assert {record.name for record in caplog.records} == {"skclip_icm"}


def sources():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")


def test_no_module_prints():
    for name, source in sources():
        calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
        prints = [c.lineno for c in calls if ast.unparse(c.func) == "print"]
        assert not prints or name in PROGRAMS, f"{name}, line {prints[0]}: print"


def test_there_is_one_logger():
    for name, source in sources():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and "getLogger" in ast.unparse(node.func):
                found = ast.unparse(node)
                assert found == "logging.getLogger('skclip_icm')", f"{name}: {found}"


# Callbacks of scikit-learn


class Recorder:
    """A callback that pipelines and searches hand on, as ``ProgressBar`` is."""

    max_propagation_depth = None

    def __init__(self):
        self.begun, self.ended, self.n_setups, self.n_teardowns = [], [], 0, 0

    def setup(self, estimator, context):
        self.n_setups += 1

    def teardown(self, estimator, context):
        self.n_teardowns += 1

    def on_fit_task_begin(self, estimator, context):
        self.begun.append((context.estimator_name, context.task_name))

    def on_fit_task_end(self, estimator, context):
        self.ended.append((context.estimator_name, context.task_name))


@pytest.fixture
def recorder():
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has callbacks")
    return Recorder()


def test_callbacks_of_a_pipeline_see_what_its_steps_encode(photographs, recorder):
    pipe = images_and_icm().set_callbacks(recorder)
    pipe.fit(photographs, [0, 1] * 3)
    told = [entry for entry in recorder.begun if entry[1].startswith("encode")]
    assert told == [
        ("CLIPFeaturizer", "encode 6 images"),
        ("ICMTransformer", "encode 6 images"),  # the counterparts
    ]
    assert sorted(recorder.begun) == sorted(recorder.ended)
    assert recorder.n_setups == recorder.n_teardowns == 1
    steps = [task for _, task in recorder.ended if task.startswith("images up to")]
    assert steps == [f"images up to {n}" for n in range(1, 7)] * 2


def test_callbacks_of_a_search(photographs, recorder):
    search = GridSearchCV(images_and_icm(), {"icmtransformer__lam": [0.1, 1]}, cv=2)
    search.set_callbacks(recorder).fit(photographs, [0, 1] * 3)
    fits = [name for name, task in recorder.begun if task == "fit"]
    assert fits.count("ICMTransformer") == 5
    assert sorted(recorder.begun) == sorted(recorder.ended)


def test_callbacks_of_zero_shot(photographs, recorder):
    classifier = ZeroShotClassifier(
        CLIPFeaturizer("demo"), ICMTransformer(), class_names=["cat", "dog"]
    )
    classifier.set_callbacks(recorder).fit(photographs)
    told = [entry for entry in recorder.begun if entry[1].startswith("encode")]
    assert told == [("ZeroShotClassifier", "encode 6 images")] * 2


def test_callbacks_are_torn_down_after_an_error(recorder):
    featurizer = CLIPFeaturizer("demo").set_callbacks(recorder)
    with pytest.raises(ValueError, match="no such file"):
        featurizer.fit_transform(["nowhere.png"])
    assert recorder.n_setups == recorder.n_teardowns == 1
    assert pickle.loads(pickle.dumps(clone(featurizer))).get_params()


def test_many_images_are_told_of_in_a_hundred_steps(recorder):
    icm = ICMTransformer().set_callbacks(recorder)
    with tell_callbacks(icm, None), progress_bar("x", 1234, verbose=False) as bar:
        bar.begin()
        for _ in range(1234):
            bar.update(1)
    steps = [task for _, task in recorder.begun if task.startswith("images up to")]
    assert len(steps) == 100
    assert steps[-1] == "images up to 1234"


def test_progress_bar_of_scikit_learn(photographs, recorder, capfd):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    pipe = images_and_icm().set_callbacks(ProgressBar())
    pipe.fit(photographs, [0, 1] * 3)
    assert "CLIPFeaturizer" in capfd.readouterr().out


def test_estimators_work_the_same_without_callbacks(photographs):
    Z = CLIPFeaturizer("demo").fit_transform(photographs)
    icm = ICMTransformer(n_components=2)
    with tell_callbacks(icm, Z):
        inside = icm.fit(Z).transform(Z)
    np.testing.assert_array_equal(inside, ICMTransformer(2).fit(Z).transform(Z))
