"""The installed C++ API: a program of its own finds the CMake package, links the core and gets the same bits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import maskattn
from maskattn import masks

_PROGRAM = """
#include <cstdio>
#include "maskattn/attention.hpp"
#include "maskattn/mask.hpp"
#include "maskattn/runtime.hpp"

int main(int, char** argv) {
  maskattn::set_isa(argv[1]);
  constexpr int length = 5, dim = 4;
  float q[length * dim], out[length * dim];
  for (int i = 0; i < length * dim; ++i) q[i] = 0.25f * static_cast<float>(i % 7) - 0.5f;
  const maskattn::MaskPlan plan(maskattn::mask_band({}, 0), {1, 1, length, length, {0}, {length}}, 1);
  constexpr auto dtype = maskattn::Dtype::float32;
  const maskattn::Rows<const void> rows{q, dtype, {0, 0, dim}};
  maskattn::AttentionInputs in{1, 1, 1, length, length, dim, dim, rows, rows, rows};
  in.mask = &plan;
  in.scale = 0.5;
  maskattn::attention(in, {out, dtype, {0, 0, dim}}, {});
  for (const float x : out) std::printf("%a\\n", x);
}
"""

_PROJECT = """
cmake_minimum_required(VERSION 3.21)
project(embed LANGUAGES CXX)
find_package(maskattn REQUIRED)
add_executable(embed main.cpp)
target_link_libraries(embed PRIVATE maskattn::maskattn_core)
"""


def test_a_program_links_the_core(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or not Path(maskattn.get_cmake_dir()).is_dir():
        pytest.skip("needs cmake and an installed package")
    (tmp_path / "main.cpp").write_text(_PROGRAM)
    (tmp_path / "CMakeLists.txt").write_text(_PROJECT)
    configure = [cmake, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={maskattn.get_cmake_dir()}"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run([cmake, "--build", tmp_path / "build"], check=True, capture_output=True)
    isa = maskattn.info()["isa"]
    printed = subprocess.run([tmp_path / "build" / "embed", isa], check=True, capture_output=True, text=True).stdout
    q = (0.25 * (np.arange(20) % 7) - 0.5).astype(np.float32).reshape(1, 1, 5, 4)
    want = maskattn.attention(q, q, q, mask=masks.Causal(), scale=0.5)
    assert [float.fromhex(line) for line in printed.split()] == want.ravel().tolist()


def test_headers_are_where_get_include_says() -> None:
    include = Path(maskattn.get_include())
    if not include.is_dir():
        pytest.skip("needs an installed package")
    assert (include / "maskattn" / "attention.hpp").is_file()
