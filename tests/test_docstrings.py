"""Every public docstring follows the numpydoc standard."""

import inspect
import re
import tomllib
from pathlib import Path

import numpydoc.validate
import pytest

import skclip_icm

ROOT = Path(__file__).parents[1]

# (dotted name, check): reason. Checks left out everywhere are in pyproject.toml.
_AS_NUMPY = "overrides a method of numpy.ndarray, with its parameters"
EXCEPTIONS = {
    ("skclip_icm.PairedEmbeddings.copy", "PR01"): _AS_NUMPY,
    ("skclip_icm.PairedEmbeddings.copy", "RT01"): _AS_NUMPY,
    ("skclip_icm.PairedEmbeddings.take", "PR01"): _AS_NUMPY,
    ("skclip_icm.PairedEmbeddings.take", "RT01"): _AS_NUMPY,
}


def documented_objects():
    """Yield the dotted names of all that a user can reach by public names."""
    for name in skclip_icm.__all__:
        value = getattr(skclip_icm, name)
        dotted = f"skclip_icm.{name}"
        if inspect.ismodule(value):
            for member, defined in _public_members(value):
                yield from _with_methods(f"{dotted}.{member}", defined)
        else:
            yield from _with_methods(dotted, value)


def _public_members(module):
    for name, value in vars(module).items():
        home = getattr(value, "__module__", None) or ""
        if not name.startswith("_") and home.startswith(module.__name__):
            yield name, value


def _with_methods(dotted, value):
    yield dotted
    if not inspect.isclass(value):
        return
    documented = (classmethod, property, staticmethod)
    for cls in value.__mro__:
        if not cls.__module__.startswith("skclip_icm"):
            continue  # inherited from scikit-learn or NumPy, documented there
        for name, member in vars(cls).items():
            if name.startswith("_"):
                continue
            if inspect.isfunction(member) or isinstance(member, documented):
                yield f"{dotted}.{name}"


def _checks():
    with open(ROOT / "pyproject.toml", "rb") as file:
        settings = tomllib.load(file)["tool"]["numpydoc_validation"]
    return set(numpydoc.validate.ERROR_MSGS) - set(settings["checks"])


def _is_method(dotted):
    return inspect.isclass(_resolve(dotted.rpartition(".")[0]))


def _resolve(dotted):
    value = skclip_icm
    for part in dotted.split(".")[1:]:
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("dotted", sorted(set(documented_objects())))
def test_docstring_is_valid(dotted):
    left_out = {check for name, check in EXCEPTIONS if name == dotted}
    if _is_method(dotted):
        left_out.add("EX01")  # the example stands with the class
    errors = numpydoc.validate.validate(dotted)["errors"]
    found = [e for e in errors if e[0] in _checks() - left_out]
    assert not found, "\n".join(f"{dotted}: {code} {text}" for code, text in found)


def test_constants_that_docstrings_name_are_where_a_user_finds_them():
    for dotted in set(documented_objects()):
        doc = inspect.getdoc(_resolve(dotted)) or ""
        for name in re.findall(r"(?<!`)`([A-Z]+(?:_[A-Z]+)*)`(?!`)", doc):
            if len(name) > 1:  # others are symbols, such as a parameter X
                home = _resolve(dotted.rpartition(".")[0])
                assert hasattr(home, name), f"{dotted}: {name}"
