"""The command line on a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskattn import cli
from maskattn.decoder.device import transformer
from test_cli_models import bert


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of models that were moved to one."""
    asked = []
    original = transformer.open_device

    def opened(name: str) -> object:
        asked.append(name)
        return original(name)

    monkeypatch.setattr(transformer, "open_device", opened)
    return asked


def test_commands_write_what_they_write_on_the_cpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, devices: list[str]
) -> None:
    commands = [
        ["generate", "--max-new-tokens", "4", "3.3.24"],
        ["classify", "--model", bert(tmp_path), "hello", "the world"],
    ]
    for command in commands:
        assert said(capsys, *command, "--device", "cuda") == said(capsys, *command)
    assert devices == ["cuda", "cuda"]


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--device", "cuda:99", "x"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("maskattn: device must be one of the")
    assert told.endswith("got 'cuda:99'\n")
    assert told.count("\n") == 1
