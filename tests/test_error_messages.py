"""Every error and warning of the package says what, where, and what to do."""

import ast
import re
from pathlib import Path

import pytest

import skclip_icm

PACKAGE = Path(skclip_icm.__file__).parent
VALUE = "<value>"  # stands for a formatted value in the text of a message
# Raised for code of this package, which catches them.
INTERNAL = {"DatabaseError", "_UnknownError"}
COMMAND = re.compile(r"(Run[^.]*: |: pip install |: npm install )[^.]*")


def calls_of(tree):
    """Yield (line, name, call) of whatever is raised, warned of or logged."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield node.lineno, ast.unparse(node.exc.func).split(".")[-1], node.exc
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
            if node.exc.id[0].isupper():
                yield node.lineno, node.exc.id, ast.parse("f()").body[0].value
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("warnings.warn", "logger.warning", "logger.error"):
                yield node.lineno, name, node


def text_of(node):
    """Return the text of a message, with a mark for each formatted value."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return VALUE


MESSAGES = []
NAMES = set(skclip_icm.__all__)
for path in sorted(PACKAGE.rglob("*.py")):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    NAMES |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    MESSAGES += [
        pytest.param(call, id=f"{path.relative_to(PACKAGE)}:{line}")
        for line, name, call in calls_of(tree)
        if name not in {*INTERNAL, "AttributeError"}
    ]


def test_the_list_is_complete():
    assert len(MESSAGES) > 150


@pytest.mark.parametrize("call", MESSAGES)
def test_message_is_whole_and_names_what_it_is_about(call):
    arguments = [text_of(argument) for argument in call.args]
    assert arguments, "an exception without a message"
    if ast.unparse(call.func) == "row_error":
        # Makes "row 3: 'cat.jpg': no such file. Check the path." of its parts.
        _, where, found, fix = arguments
        assert where
        assert not found.endswith(".")
        assert fix.endswith((".", VALUE))
        return
    if ast.unparse(call.func).startswith("logger"):
        message = arguments[0].replace("%s", VALUE)
    else:
        message = arguments[0]
    end = message.rstrip("\"'` ")
    assert end.endswith((".", VALUE)) or COMMAND.search(message), (
        f"{message!r} does not end with a full stop, or with a command to run"
    )
    named = NAMES & set(re.findall(r"\w+", message))
    assert VALUE in message or named, f"{message!r} names no parameter and no value"
    assert len(message.split()) >= 4 or VALUE in message, message


@pytest.mark.parametrize("call", MESSAGES)
def test_message_reads_as_text(call):
    text = " ".join(text_of(argument) for argument in call.args)
    assert "  " not in text.replace(VALUE + " ", VALUE)
    assert "!" not in text.replace("!=", "")
    for unhelpful in ("invalid", "illegal", "bad ", "something went wrong", "please"):
        assert unhelpful not in text.lower()
