"""The layers, and who may know whom; what an import costs; what leaves a kernel's object file."""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPP, PACKAGE = ROOT / "cpp", ROOT / "python" / "maskattn"
#: What the core may include of kernels/: types only.
TABLES = ("table.hpp", "linear_table.hpp")


def sources(*folders: str) -> list[Path]:
    found = [
        path for folder in folders for path in sorted((CPP / folder).rglob("*")) if path.suffix in (".cpp", ".hpp")
    ]
    assert found, f"no sources in {folders}"
    return found


CUDA = [path for path in sorted((CPP / "cuda").rglob("*")) if path.suffix in (".cu", ".cpp", ".hpp")]


def includes(path: Path) -> list[str]:
    """What a file includes, with its brackets: ``<cstdint>`` or ``"table.hpp"``."""
    return re.findall(r'^\s*#\s*include\s+(<[^>]+>|"[^"]+")', path.read_text(), re.MULTILINE)


def included_file(path: Path, name: str) -> Path:
    """The file of this repository that ``#include "name"`` means."""
    for folder in (path.parent, CPP / "include"):
        if (folder / name).exists():
            return (folder / name).resolve()
    raise AssertionError(f"{path.name} includes {name}, which is not in this repository")


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# C++: kernels and isa know nothing, core knows them, bindings know Python.


@pytest.mark.parametrize("path", sources("kernels", "isa"), ids=id_of)
def test_kernels_include_plain_c_headers_and_intrinsics(path: Path) -> None:
    for name in includes(path):
        if name.startswith("<"):
            assert re.fullmatch(r"<(cst\w+|immintrin\.h|smmintrin\.h|arm_neon\.h)>", name), name
        else:
            assert included_file(path, name.strip('"')).parent in (CPP / "kernels", CPP / "isa"), name


@pytest.mark.parametrize("path", sources("kernels", "isa"), ids=id_of)
def test_kernels_know_no_python_no_openmp_and_no_containers(path: Path) -> None:
    text = path.read_text()
    for word in (
        "pybind11",
        "Python.h",
        "omp.h",
        "pragma omp",
        "omp_",
        "std::vector",
        "std::string",
        "<vector>",
        "throw ",
    ):
        assert word not in text, word


@pytest.mark.parametrize("path", sources("kernels", "isa"), ids=id_of)
def test_kernels_live_in_anonymous_namespaces(path: Path) -> None:
    """Or one path's code, compiled with its flags, may be linked into another's. Tables hold types only."""
    text = path.read_text()
    opened = [name or "(anonymous)" for name in re.findall(r"^\s*namespace\s*([\w:]*)\s*\{", text, re.MULTILINE)]
    if path.name in TABLES:
        assert opened == ["maskattn"]
    else:
        assert set(opened) == {"maskattn::MASKATTN_ISA", "(anonymous)"}
        assert opened[1::2] == ["(anonymous)"] * (len(opened) // 2)


@pytest.mark.parametrize("path", sources("core", "include"), ids=id_of)
def test_the_core_knows_no_python(path: Path) -> None:
    text = path.read_text()
    assert "pybind11" not in text
    assert "Python.h" not in text
    for name in includes(path):
        if name.startswith('"') and not name.endswith('.inc"'):  # .inc: written by CMake
            target = included_file(path, name.strip('"'))
            assert CPP / "bindings" not in target.parents
            assert target.name in TABLES or CPP / "kernels" not in target.parents, name


@pytest.mark.parametrize("path", sources("include"), ids=id_of)
def test_the_installed_headers_need_nothing_else(path: Path) -> None:
    for name in includes(path):
        assert name.startswith("<") or CPP / "include" in included_file(path, name.strip('"')).parents


@pytest.mark.parametrize("path", sources("bindings"), ids=id_of)
def test_bindings_call_the_core_by_its_public_headers(path: Path) -> None:
    for name in includes(path):
        if name.startswith('"'):
            assert included_file(path, name.strip('"')).parent in (CPP / "bindings", CPP / "include" / "maskattn"), name


@pytest.mark.parametrize("path", [path for path in CUDA if "bindings" not in path.parts], ids=id_of)
def test_cuda_knows_no_python(path: Path) -> None:
    assert "pybind11" not in path.read_text()


@pytest.mark.parametrize("path", CUDA, ids=id_of)
def test_cuda_needs_only_headers_of_the_core(path: Path) -> None:
    """Installed ones: _cuda does not link the core, so that nothing but data crosses between the two modules."""
    for name in includes(path):
        if name.startswith('"'):
            file = next(
                folder / name.strip('"') for folder in (CPP, CPP / "include") if (folder / name.strip('"')).exists()
            )
            assert CPP / "cuda" in file.parents or CPP / "include" in file.parents or file.name == "dlpack.hpp", name


# Python: families -> decoder -> attention, masks, linear -> _core


def imports(path: Path) -> set[str]:
    """Every module, or name of a module, that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def python_files(*names: str) -> list[Path]:
    found = [path for name in names for path in sorted(PACKAGE.glob(name))]
    assert found, f"no files match {names}"
    return found


@pytest.mark.parametrize("path", python_files("families/*.py"), ids=id_of)
def test_a_family_imports_its_declaration_type_and_masks(path: Path) -> None:
    allowed = "families", "masks"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "maskattn":
            assert rest[0] in allowed, name
        else:
            assert top in sys.stdlib_module_names, name


@pytest.mark.parametrize(
    "path",
    python_files(
        "arguments.py",
        "attention.py",
        "bias.py",
        "interop.py",
        "linear.py",
        "runtime.py",
        "weights.py",
        "masks/*.py",
        "cache/*.py",
        "cuda/*.py",
        "speech/*.py",
    ),
    ids=id_of,
)
def test_the_numpy_layer_knows_no_decoder(path: Path) -> None:
    for name in imports(path):
        top, *rest = name.split(".")
        assert top in sys.stdlib_module_names | {"numpy", "ml_dtypes", "typing_extensions", "maskattn"}, name
        assert top != "maskattn" or rest[0] not in ("decoder", "families", "cli"), name


@pytest.mark.parametrize("path", python_files("**/*.py"), ids=id_of)
def test_the_package_needs_no_torch(path: Path) -> None:
    for name in imports(path):
        assert name.split(".")[0] not in ("torch", "transformers", "scipy", "pytest"), name


# What an import brings and costs


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout


def test_import_brings_attention_alone() -> None:
    loaded = set(python("import sys, maskattn; print(*sys.modules)").split())
    assert "maskattn._core" in loaded
    for name in (
        "safetensors",
        "torch",
        "transformers",
        "maskattn.cache",
        "maskattn.decoder",
        "maskattn.families",
        "maskattn.cli",
    ):
        assert name not in loaded, name


def test_import_is_small() -> None:
    """How long it takes is bench/test_import.py's; what it brings besides NumPy can be counted."""
    brought = python("import sys, numpy; before = set(sys.modules); import maskattn; print(*set(sys.modules) - before)")
    ours = [name for name in brought.split() if name.startswith("maskattn")]
    others = {name.split(".")[0] for name in brought.split()} - {"maskattn", "numpy"}
    assert len(ours) <= 17, sorted(ours)
    assert others <= sys.stdlib_module_names, others


# One symbol a kernel object


def isa_rows() -> list[tuple[str, str]]:
    """(name, flags) of the instruction sets of x86-64, as CMake has them."""
    rows = re.findall(r'^\s*"(\w+) \| (-march=\S+) \|', (CPP / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert rows[0][0] == "baseline"
    return rows


COMPILER = os.environ.get("CXX") or shutil.which("c++")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for x86-64")
@pytest.mark.skipif(not COMPILER or not shutil.which("nm"), reason="needs a C++ compiler and nm")
@pytest.mark.parametrize(("name", "flags"), isa_rows())
def test_one_symbol_leaves_a_kernel_object(name: str, flags: str, tmp_path: Path) -> None:
    assert COMPILER
    target = tmp_path / f"{name}.o"
    command = [
        COMPILER, "-std=c++20", "-O3", "-fPIC", "-w", flags,
        "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
        f"-DMASKATTN_ISA={name}", f'-DMASKATTN_ISA_HEADER="../isa/{name}.hpp"', f"-I{CPP / 'include'}",
        "-c", str(CPP / "kernels" / "kernels.cpp"), "-o", str(target),
    ]  # fmt: skip
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "unrecognized" in compiled.stderr and flags in compiled.stderr:
        pytest.skip(f"the compiler does not know {flags}")
    assert compiled.returncode == 0, compiled.stderr
    listed = subprocess.run(["nm", "-g", str(target)], capture_output=True, text=True, check=True).stdout
    defined = [line.split()[-1].lstrip("_") for line in listed.splitlines() if line.split()[-2] != "U"]
    assert defined == [f"maskattn_kernels_{name}"]
