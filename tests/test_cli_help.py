"""Help and usage errors of every command, without loading a model."""

import re
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import intclip
from intclip.cli.main import app, main


def commands(group, path=()):
    """Return the words of every command, groups first."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_help_teaches_line_by_line(words):
    text = CliRunner().invoke(app, [*words, "--help"]).stdout
    assert text.startswith("Usage: ")
    assert "\\b" not in text
    assert "\b" not in text
    for line in text.splitlines():
        assert "Examples:" not in line or line.strip() == "Examples:"
        assert len(re.findall(r"(?<![\w`'])intclip [a-z]", line)) <= 1, "each example has a line of its own"


def test_only_the_help_of_long_commands_has_panels():
    for command, long in (("predict", True), ("evaluate", True), ("train", False)):
        text = CliRunner().invoke(app, [command, "--help"]).stdout
        panels = [line for line in text.splitlines() if re.fullmatch(r"[A-Z]\w+:", line)]
        assert ("Output:" in panels) is long
        assert "Arguments:" in panels
        assert "Options:" in panels
        options = typer.main.get_command(app).commands[command].params
        assert all(text.count(f" {option.opts[0]} ") for option in options if option.param_type_name == "option")


def outputs(group):
    """Return the words of every command, with each of its output options."""
    for words in commands(group):
        command = group
        for word in words:
            command = command.commands[word]
        for option in command.params:
            if option.name in ("out", "csv", "parquet", "plots") and words != ("batch",):
                yield (*words, option.opts[0])


@pytest.mark.parametrize("words", list(outputs(typer.main.get_command(app))), ids=" ".join)
def test_an_output_that_cannot_be_written_ends_each_command_before_it_begins(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(sys, "argv", ["intclip", *words, "taken/deep"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert "cannot write taken/deep: Not a directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_each_example_of_a_help_can_be_copied_from_one_line(words):
    lines = CliRunner().invoke(app, [*words, "--help"]).stdout.splitlines()
    about = lines[: next(i for i, line in enumerate(lines) if line.startswith(("Arguments:", "Options:")))]
    examples = [i for i, line in enumerate(about) if re.match("  (intclip [a-z]|export |torchrun )", line)]
    assert [about[i + 1] for i in examples] == [""] * len(examples)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("predict x.jpg --threshold 2", "--threshold 2: choose a number from 0 to 1"),
        ("predict x.jpg --threshold -0.1", "--threshold -0.1: choose a number from 0 to 1"),
        ("predict x.jpg --threshold nan", "--threshold nan: choose a number from 0 to 1"),
        ("predict x.jpg --threshold half", "--threshold half: choose a number from 0 to 1"),
        ("predict x.jpg --top 0", "--top 0: choose a whole number from 1 on"),
        ("predict x.jpg --batch-size 1.5", "--batch-size 1.5: choose a whole number from 1 on"),
        ("app --port 70000", "--port 70000: choose a whole number from 0 to 65535"),
        ("describe x.jpg --model m --out x.csv --prices 1 x", "--prices x: choose a number"),
        ("predict x.jpg --engine fast", "--engine: 'fast' is not one of 'auto', 'torch', 'openvino', 'onnx'"),
    ],
)
def test_a_wrong_number_is_told_with_its_limits(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["intclip", *words.split()])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert capsys.readouterr().err == f"intclip: {said}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("demo --out taken", "cannot write taken: File exists; free space or choose a writable place"),
        ("demo --out taken/deep", "cannot write taken/deep: Not a directory; free space or choose a writable place"),
        ("ablate tabel4", "no study 'tabel4'; did you mean 'table4'?"),  # and not that a dataset is missing
    ],
)
def test_what_cannot_be_is_told_before_any_work(words, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    monkeypatch.delenv("INTCLIP_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["intclip", *words.split()])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert capsys.readouterr().err == f"intclip: {said}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_package_runs_as_a_module():
    asked = [sys.executable, "-m", "intclip", "--version"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == intclip.__version__
