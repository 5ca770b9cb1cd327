"""The command line: what it prints, and what it says when it cannot."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny_families
from maskattn import cli, terminal
from maskattn.decoder import load
from maskattn.families import FAMILIES


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_generate(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "generate", "the 3rd of March, 2024") == "2024-03-03\n"
    assert run(capsys, "generate", "3 March 2024", "5 Jan 50") == "2024-03-03\n1950-01-05\n"


def test_generate_reads_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("3 March 2024\n\n20240304\n"))
    assert run(capsys, "generate") == "2024-03-03\n2024-03-04\n"


def test_generate_json(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(run(capsys, "generate", "--json", "--weights", "3 March 2024"))
    assert record["source"] == "3 March 2024"
    assert record["output"] == "2024-03-03"
    weights = np.array(record["weights"])
    assert weights.shape == (len(record["output_tokens"]), len(record["source_tokens"]))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-4)
    assert "".join(record["output_tokens"][:-1]) == "2024-03-03"


def test_generate_draws_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "generate", "--weights", "3 March 2024").splitlines()
    assert lines[0] == "2024-03-03"
    # The source, a token a column: characters, and the end token, which is written downwards.
    assert [line.split() for line in lines[1:5]] == [["<"], ["/"], ["s"], ["3", "march", "2024>"]]
    assert [line.split()[0] for line in lines[5:]] == [*"2024-03-03", "</s>"]


def test_a_bar_when_there_are_many_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO("3 March 2024\n" * 130))
    assert run(capsys, "generate") == "2024-03-03\n" * 130
    assert "130/130" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[K")
    stream.truncate(0)
    assert run(capsys, "generate", "3 March 2024") == "2024-03-03\n"
    assert "/" not in stream.getvalue()


def test_generate_with_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "generate", "--max-new-tokens", "4", "3 March 2024") == "2024\n"
    assert run(capsys, "generate", "--stop", "-", "3 March 2024") == "2024-\n"
    command = ("generate", "--sample", "--temperature", "9", "--top-k", "0", "3 March 2024")
    drawn = run(capsys, *command, "--seed", "1")
    assert drawn == run(capsys, *command, "--seed", "1")
    assert drawn != run(capsys, *command, "--seed", "2")


def test_score(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = run(capsys, "score", "3 March 2024", "2024-03-03", "3 March 2024", "2024-03-04").splitlines()
    assert float(right.split("\t")[0]) > -0.1 > -3 > float(wrong.split("\t")[0])
    monkeypatch.setattr(sys, "stdin", io.StringIO("3 March 2024\t2024-03-03\n"))
    assert run(capsys, "score") == right + "\n"
    record = json.loads(run(capsys, "score", "--json", "3 March 2024", "2024-03-04"))
    assert record["target"] == "2024-03-04"
    assert len(record["tokens"]) == 11
    assert sum(record["tokens"]) == pytest.approx(record["log_probability"])
    assert wrong.startswith(f"{record['log_probability']:.4f}\t")


def test_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kinds = json.loads(run(capsys, "models", "--json"))
    assert {name for names in kinds.values() for name in names} == set(FAMILIES)
    assert run(capsys, "models").splitlines()[0].split() == [
        "encoder-decoder",
        *", ".join(kinds["encoder-decoder"]).split(),
    ]
    for name in FAMILIES:
        settings = tiny_families.config(name)
        path = tiny_families.write(tmp_path / name, settings)
        facts = json.loads(run(capsys, "models", "--json", str(path)))
        assert name in kinds[facts["kind"]]
        model = load(path)
        assert facts["parameters"] == model.parameters
        assert facts["dtypes"] == ["F32"]
        assert ("generate" in facts["uses"]) == ("decoder" in facts) == (model.family.decoder is not None)
        assert ("classify" in facts["uses"]) == bool(model.labels)
    assert "width 24" in run(capsys, "models", str(path))


def test_mask(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "mask", "causal & window(4)", "--q-len", "12").splitlines()
    assert len(lines) == 13
    assert lines[0] == " 0 #..........."
    assert lines[5] == " 5 .#####......"
    assert lines[12] == "50 of 144 positions attended"
    assert (
        run(capsys, "mask", "prefix(2)", "--q-len", "1", "--kv-len", "3", "--q-offset", "0").splitlines()[0] == "0 ##."
    )


def test_large_masks_are_scaled_down(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    *picture, scale, count = run(capsys, "mask", "causal & window(99)", "--q-len", "3000").splitlines()
    assert max(map(len, picture)) <= 60
    assert scale.startswith("a character is 112 queries x 55 keys: ")
    assert count == "295050 of 9000000 positions attended"


def test_mask_of_one_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("mask", "padding([1, 2])", "--q-len", "1", "--kv-len", "3")
    assert run(capsys, *command).splitlines()[0] == "2 #.."
    assert run(capsys, *command, "--batch-index", "1", "--head", "3").splitlines()[0] == "2 ##."


def test_mask_explains(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("mask", "causal & window(128) & padding(500)", "--q-len", "600", "--explain")
    assert run(capsys, *command, "131,0") == (
        "hidden by SlidingWindow(left=128): distance 131; Causal allows; Padding(lengths=500) allows\n"
    )
    assert run(capsys, *command, "131, 100").startswith("seen: Causal allows and ")
    assert run(capsys, *command, "131,600") == "does not exist: key 600 is at or past kv_length 600\n"


def test_mask_writes_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    path = tmp_path / "mask.png"
    assert run(capsys, "mask", "causal", "--q-len", "20", "--png", str(path)) == ""
    assert path.read_bytes().startswith(b"\x89PNG")


def test_mask_names_the_extra_that_a_picture_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["mask", "causal", "--q-len", "20", "--png", str(tmp_path / "mask.png")]) == 1
    assert capsys.readouterr().err == "maskattn: plot needs matplotlib; pip install 'maskattn[plot]'\n"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("~causal", ["0 .##", "1 ..#", "2 ..."]),
        ("window(left=0, right=1)", ["0 ##.", "1 .##", "2 ..#"]),
        ("padding(1) | documents(0, 1, 1)", ["0 #..", "1 ###", "2 ###"]),
        ("keys(1, 0, 1) & full", ["0 #.#", "1 #.#", "2 #.#"]),
    ],
)
def test_mask_expressions(capsys: pytest.CaptureFixture[str], text: str, want: list[str]) -> None:
    assert run(capsys, "mask", text, "--q-len", "3").splitlines()[:3] == want


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(run(capsys, "info", "--json"))
    assert facts["isa"] in facts["isas_runnable"]
    assert set(facts["isas_runnable"]) <= set(facts["isas_built"])
    assert facts["threads"] >= 1
    assert facts["version"] in run(capsys, "info")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mask", "causal & foo(4)", "--q-len", "3"], "got 'foo'"),
        (["mask", "causal &", "--q-len", "3"], "must be an expression"),
        (["mask", "window(-1)", "--q-len", "3"], "left must be from 0"),
        (["mask", "__import__('os')", "--q-len", "3"], "kind must be one of"),
        (["mask", "causal", "--q-len", "-3"], "q_len must be at least 0"),
        (["mask", "causal", "--q-len", "3", "--explain", "1"], "--explain must be Q,K"),
        (["mask", "causal", "--q-len", "3", "--explain", "3,0"], "must name a query from 0 to 2, got 3"),
        (["mask", "causal", "--q-len", "0", "--explain", "0,0"], "there are none"),
        (["mask", "causal", "--q-len", "3", "--explain", "0,-1"], "kv_pos must be at least 0"),
        (["mask", "documents(0, 1)", "--q-len", "3"], "3"),
        (["mask", "padding([1, 2])", "--q-len", "3", "--batch-index", "2"], "batch_index must be"),
        (["generate", "--model", "nowhere", "x"], "nowhere"),
        (["generate", "--max-new-tokens", "0", "x"], "max_new_tokens"),
        (["generate", "--top-p", "3", "x"], "top_p must be in"),
        (["score", "a"], "pairs SOURCE TARGET, got 1"),
        (["models", "nowhere"], "nowhere"),
        (["generate", "--device", "gpu", "x"], 'device must be "cuda"'),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("maskattn: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "x"],
        ["score", "x", "y"],
        ["classify", "--model", "nowhere", "x"],
        ["chat", "--model", "nowhere"],
        ["transcribe", "--model", "nowhere", "x.wav"],
    ],
)
def test_a_device_where_cuda_was_not_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "maskattn._cuda", None)
    assert cli.main([*arguments, "--device", "cuda"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        "maskattn: device must be None, as maskattn was built without CUDA, got 'cuda'; build it"
    )
    assert captured.err.count("\n") == 1


def test_heat_map_breaks_long_sources_into_blocks() -> None:
    weights = np.linspace(0, 1, 2 * 50).reshape(2, 50)
    picture = terminal.heat_map(weights, ["a", "</s>"], ["x"] * 50, colour=False, width=35)
    blocks = picture.split("\n\n")
    assert len(blocks) == 2
    assert blocks[0].splitlines()[0].count("x") == 30
    assert blocks[1].splitlines()[0].count("x") == 20
    assert picture.rstrip().endswith("█")
    assert "\x1b[48;5;" in terminal.heat_map(weights, ["a", "b"], ["x"] * 50, colour=True, width=80)


def test_the_console_script_is_installed() -> None:
    from importlib.metadata import PackageNotFoundError, entry_points, version

    try:
        version("maskattn")
    except PackageNotFoundError:
        pytest.skip("needs an installed package")
    (script,) = [point for point in entry_points(group="console_scripts") if point.name == "maskattn"]
    assert script.load() is cli.main
