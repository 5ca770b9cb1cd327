"""Processes of sides, as the program that times them sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.generation.shapes import Workload

OURS = "maskattn"
#: Others, by the name of their module ``with_...``: whether they read a format of their own.
PEERS = {
    "transformers": False,
    "ctranslate2": True,
    "openvino": True,
    "openvino_genai": False,  # what openvino's has made
    "onnxruntime": True,
    "onnxruntime_genai": True,
    "llama_cpp": True,
}
FOUR_BITS = "int4"  # how others call any kind of them
ROOM = 2  # times the size of the checkpoint, which loading and converting may take in memory
PROGRAM = "bench.generation.worker"
ROOT = Path(__file__).resolve().parents[2]


class Failed(Exception):
    """What a side said in place of an answer."""


@dataclass
class Side:
    """A library with a model in a dtype, in a process of its own, until ``close``.

    Attributes:
        load_s, start_s: seconds to import and load, and to the first token besides.
        peak_mb: what the process held at most until then.
    """

    name: str
    process: subprocess.Popen[str]
    load_s: float = 0.0
    start_s: float = 0.0
    peak_mb: float = 0.0

    @classmethod
    def start(
        cls, name: str, path: Path, dtype: str, threads: int, pythons: Mapping[str, str], first: Workload
    ) -> Side:
        """Converts what the library needs, loads it and writes a token.

        Raises:
            Failed: it is not installed, or cannot.
        """
        check_room(path)
        stored = FOUR_BITS if dtype.endswith("int4") and name != OURS else dtype
        command = [pythons.get(name, sys.executable), "-m", PROGRAM, name, str(path), stored, str(threads)]
        if PEERS.get(name):
            converting = cls(name, _run([*command, "--convert"], threads))
            try:
                converting._answer()
            finally:
                converting.close()
        side = cls(name, _run(command, threads))
        try:
            side.load_s = side._answer()["load_s"]
            begun = side.ask("write", first, tokens=1)
        except Failed:
            side.close()
            raise
        side.start_s, side.peak_mb = side.load_s + begun["seconds"], begun["peak_mb"]
        return side

    def processor_seconds(self) -> float:
        """That its process has used; Linux, elsewhere 0."""
        try:  # user and system time are the 12th and 13th field behind the name in parentheses (proc_pid_stat(5))
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def write(self, workload: Workload, tokens: int) -> float:
        """Seconds to write so many tokens behind each source."""
        answer = self.ask("write", workload, tokens=tokens)
        if set(answer["counts"]) != {tokens}:
            raise Failed(f"wrote {answer['counts']} tokens in place of {tokens}")
        return float(answer["seconds"])

    def ask(self, what: str, workload: Workload, **options: Any) -> dict[str, Any]:
        request = asdict(workload) | options | {"do": what}
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # _answer says how it ended
        return self._answer()

    def close(self) -> None:
        try:
            self.process.communicate(timeout=20)  # closes its input, which ends it
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"process ended with {self.process.wait()}"}
        if "error" in answer:
            raise Failed(answer["error"])
        return answer


def check_room(path: Path) -> None:
    """Raises Failed where the machine has not the memory for one more process with the model; looks on Linux only."""
    memory, wanted = Path("/proc/meminfo"), ROOM * sum(file.stat().st_size for file in path.glob("*.safetensors"))
    if memory.exists():
        free = 1024 * int(memory.read_text().split("MemAvailable:")[1].split()[0])
        if free < wanted:
            raise Failed(f"the machine has less than {wanted / 1e9:.0f} GB of free memory")


def _run(command: list[str], threads: int) -> subprocess.Popen[str]:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    environment = os.environ | quiet | {"OMP_NUM_THREADS": str(threads)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **pipes)  # type: ignore[call-overload]
