"""``_cuda.pyi``, by which mypy checks the callers of the compiled module, says what is there: names and parameters."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import maskattn
from maskattn.cuda.module import load

STUB = ast.parse((Path(maskattn.__file__).parent / "_cuda.pyi").read_text())
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
METHODS = {
    (name, node.name): node
    for name, body in CLASSES.items()
    for node in body.body
    if isinstance(node, ast.FunctionDef) and not node.decorator_list
}
#: What pybind11 gives to every class.
GIVEN = {"__init__", "__module__", "__doc__", "__new__", "__repr__"}


def parameters(function: ast.FunctionDef) -> list[tuple[str, bool]]:
    """Names, and whether there is a default; names of those that go by position only say nothing."""
    own = function.args
    positional = own.posonlyargs + own.args
    optional = len(positional) - len(own.defaults)
    found = [
        ("" if i < len(own.posonlyargs) else arg.arg, i >= optional)
        for i, arg in enumerate(positional)
        if arg.arg != "self"
    ]
    return found + [(arg.arg, given is not None) for arg, given in zip(own.kwonlyargs, own.kw_defaults, strict=True)]


def compiled_parameters(function: Any) -> list[tuple[str, bool]]:
    """The same by the signature that pybind11 writes; parameters without a name are ``arg0``, ``arg1``, ..."""
    (parsed,) = ast.parse(f"def {function.__doc__.splitlines()[0]}: ...").body
    assert isinstance(parsed, ast.FunctionDef)
    return [("" if re.fullmatch(r"arg\d+", name) else name, given) for name, given in parameters(parsed)]


def test_the_same_names() -> None:
    module = load()
    names = {name for name in vars(module) if not name.startswith("__")}
    declared = CLASSES.keys() | FUNCTIONS.keys() | {"emulated"}
    assert names == declared - (set() if module.emulated else {"emulate"})


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_attributes(name: str) -> None:
    there = vars(getattr(load(), name)).keys() - GIVEN
    declared = {node.name for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)} - GIVEN
    assert {attribute for attribute in there if not attribute.startswith("_pybind11")} == declared


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "emulate"])
def test_the_same_parameters(name: str) -> None:
    assert compiled_parameters(getattr(load(), name)) == parameters(FUNCTIONS[name])


@pytest.mark.parametrize("name", METHODS, ids=".".join)
def test_methods_of_the_same_parameters(name: tuple[str, str]) -> None:
    owner, method = name
    assert compiled_parameters(getattr(getattr(load(), owner), method)) == parameters(METHODS[name])
