"""Errors of `intclip serve` and `intclip app` before they load a model."""

import sys

import pytest

from intclip.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "a=lite", "--model", "a=proxy"], "two models are called 'a'"),
        (["--max-photos", "300"], "max_photos 300 is above capacity 256"),
        (["--api-key-file", "nothing.txt"], "cannot read the API key from nothing.txt"),
        (["--log-level", "loud"], "intclip: --log-level: 'loud' is not one of 'debug', 'info', 'warning', 'error'"),
        (["--host", "no such host"], "no address 'no such host'"),
        (["--allow-origin", "https://example.org/"], "intclip: 'https://example.org/' is not an origin"),
        (["--allow-origin", "example.org"], "intclip: 'example.org' is not an origin"),
        (["--answer-seconds", "inf"], "--answer-seconds inf: choose a number from 0.1 to 86400"),
    ],
)
def test_wrong_options_end_in_one_line(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["intclip", "serve", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    told = capsys.readouterr().err
    assert leaving.value.code == 2
    assert said in told
    assert told.count("\n") == 1


def test_the_app_takes_no_empty_host_for_all_networks(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["intclip", "app", "--host", "", "--model", "nothing of the kind"])
    with pytest.raises(SystemExit):
        main()
    assert "no address ''" in capsys.readouterr().err


def test_the_app_refuses_a_taxonomy_that_no_model_would_use(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["intclip", "app", "--model", "proxy", "--taxonomy", "mine.yaml", "--port", "0"])
    with pytest.raises(SystemExit) as leaving:
        main()
    err = capsys.readouterr().err
    assert leaving.value.code == 2
    assert "mine.yaml" in err
    assert "proxy" in err
    assert err.count("\n") == 1


def test_a_blank_key_does_not_open_the_service(monkeypatch, capsys):
    monkeypatch.setenv("INTCLIP_API_KEY", "  ")
    monkeypatch.setattr(sys, "argv", ["intclip", "serve"])
    with pytest.raises(SystemExit):
        main()
    assert "INTCLIP_API_KEY is blank" in capsys.readouterr().err


def test_a_key_that_cannot_travel_is_refused_and_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("INTCLIP_API_KEY", "my key")
    monkeypatch.setattr(sys, "argv", ["intclip", "serve"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err
    assert told.startswith("intclip: INTCLIP_API_KEY: api_key must be ASCII")
    assert "my key" not in told
