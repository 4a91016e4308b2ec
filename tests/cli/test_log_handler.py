"""Log messages are printed to standard error, each on one line."""

import logging

import pytest

from featgan.cli.log_handler import ConsoleHandler, install_log_handler


@pytest.mark.parametrize("name", ["featgan.test", "launch.test"])
@pytest.mark.parametrize(
    ("level", "text"),
    [(logging.INFO, "a message"), (logging.WARNING, "warning: a message"), (logging.ERROR, "error: a message")],
)
def test_messages_are_printed_with_their_level(
    name: str, level: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger(name).log(level, "a message")
    output = capsys.readouterr()
    assert output.err == f"{text}\n" and output.out == ""


def test_long_messages_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    message = "word " * 100 + "[bold] end"
    logging.getLogger("featgan.test").info(message)
    assert capsys.readouterr().err == f"{message}\n", "neither wrapped nor read as markup"


def test_debug_messages_are_printed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("featgan.test").debug("hidden")
    assert capsys.readouterr().err == ""
    install_log_handler(debug=True)
    logging.getLogger("featgan.test").debug("shown")
    install_log_handler()
    assert capsys.readouterr().err == "shown\n"


def test_handler_is_installed_once() -> None:
    install_log_handler()
    install_log_handler()
    handlers = logging.getLogger("featgan").handlers
    assert sum(isinstance(handler, ConsoleHandler) for handler in handlers) == 1
