"""`intclip demo`: predictions, a report, and suggested commands."""

import re

from typer.testing import CliRunner

from intclip.cli.main import app
from intclip.data.demo_photos import demo_photos


def test_the_demo_shows_each_photo_and_names_commands_that_run(tmp_path, monkeypatch):
    runner = CliRunner()
    pictures = tmp_path / "Pictures"
    pictures.mkdir()
    (pictures / "cat.png").write_bytes(demo_photos()[0].read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = runner.invoke(app, ["demo", "--out", str(tmp_path / "demo")], catch_exceptions=False)
    assert shown.exit_code == 0
    for photo in demo_photos():
        assert re.search(rf"^  {re.escape(photo.name)} +(Probably: .+ 0\.\d\d|No clear intent)$", shown.output, re.M)
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^  intclip (\w+) (.*)$", shown.output, re.M)
    assert [name for name, _ in commands] == ["predict", "report", "app"]
    for name, rest in commands[:2]:
        words = rest.replace("~", str(tmp_path)).split()
        assert runner.invoke(app, [name, *words], catch_exceptions=False).exit_code == 0
    assert (tmp_path / "pictures.html").is_file()
