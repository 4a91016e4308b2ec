"""Print the log messages of featgan and launch to standard error."""

import logging

PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class ConsoleHandler(logging.Handler):
    """Prints each message on one line. Rich is imported with the first message, so that `--help` starts fast."""

    def emit(self, record: logging.LogRecord) -> None:
        from featgan.system.progress import console

        text = PREFIXES.get(record.levelno, "") + record.getMessage()
        # With soft_wrap, a long message stays on one line of a log file.
        console.print(text, style=STYLES.get(record.levelno), soft_wrap=True)


def install_log_handler(debug: bool = False) -> None:
    """Print messages of level INFO and above, or DEBUG and above if `debug` is set.

    Entry points call this function once, before any work. A program that imports featgan as a library and does not
    call it gets warnings only, which is the default of the logging module.
    """
    for name in ("featgan", "launch"):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
            logger.addHandler(ConsoleHandler())
        logger.setLevel(logging.DEBUG if debug else logging.INFO)
