"""Shared by the `featgan` and `launch` commands: groups, option groups, and how a command line ends."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from featgan.cli.log_handler import install_log_handler
from featgan.config.choices import EXTERNAL_TASKS, SUITES
from featgan.errors import TrainingInterrupted, UserError
from featgan.system.locations import Location
from featgan.system.os_errors import user_error_message
from featgan.system.path_option import UserLocation, UserPath
from featgan.system.plain_text import print_line

STANDARD_OUTPUT = 1
"""File descriptor of the standard output."""

PATH_TYPE = UserPath(path_type=Path)
LOCATION_TYPE = UserLocation()

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

Command = TypeVar("Command", bound=Callable[..., Any])


class OrderedGroup(click.Group):
    """A group that lists its commands in the order of definition, not in alphabetical order."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def option_group(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator that adds several options, in the order in which the help lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


resume_options = option_group(
    click.option(
        "--init-from",
        type=PATH_TYPE,
        help="Checkpoint folder of another run to initialize a new run from; the step count continues.",
    ),
    click.option(
        "--reset-optimizer",
        is_flag=True,
        help="Load only the weights of that checkpoint and start with a new optimizer state.",
    ),
)

num_components_option = click.option(
    "--num-components", default=10, show_default=True, type=click.IntRange(1), help="Number of components to sweep."
)

trust_callables_option = click.option(
    "--trust-callables",
    is_flag=True,
    help="Also import classifiers of the form package.module:callable that only a file names. "
    "By default, only those that you name are imported.",
)

evaluator_options = option_group(
    click.option(
        "--suite",
        default="standard",
        show_default=True,
        type=click.Choice(SUITES),
        help="Number of images to evaluate: quick 2,000 pairs, standard 10,000 pairs, full all validation images.",
    ),
    click.option(
        "--classifier",
        "--blackbox",
        "classifiers",
        multiple=True,
        metavar="SPEC",
        help="New SPEC of the classifier, if its file has moved. For a label-conditioned run: SPEC of the evaluation"
        " classifier; repeat the option for a second data set.",
    ),
    click.option(
        "--factor-probe",
        metavar="SPEC",
        help="SPEC of a classifier trained to predict the true factors of synthetic faces.",
    ),
    click.option(
        "--second-classifier",
        metavar="SPEC",
        help="SPEC of a second classifier that was not used in training, to check that it also responds to the edits.",
    ),
    trust_callables_option,
)

metric_options = option_group(
    click.option(
        "--inception",
        type=PATH_TYPE,
        help="File with Inception-v3 weights, required for FID and KID in Inception feature space.",
    ),
    click.option(
        "--lpips", type=PATH_TYPE, help="File with torchvision's alexnet or vgg16 weights, required for LPIPS."
    ),
    click.option(
        "--max-pairs",
        type=click.IntRange(2),
        help="Maximum number of image pairs to evaluate; the sweeps use at most one eighth of this number of images.",
    ),
    num_components_option,
)

render_options = option_group(
    click.option(
        "--blackbox",
        metavar="SPEC",
        help="New SPEC of the classifier, if its file has moved.",
    ),
    trust_callables_option,
    click.option(
        "--images",
        type=PATH_TYPE,
        help="Folder with images to edit instead of the validation images; the report is then named report-NAME.html.",
    ),
    click.option(
        "--directions",
        default="",
        help="Comma-separated names of the directions to render; all that apply to the condition by default.",
    ),
    click.option(
        "--num-images",
        default=6,
        show_default=True,
        type=click.IntRange(1, 64),
        help="Number of source images to show.",
    ),
    num_components_option,
    click.option(
        "--component-name",
        "component_names",
        multiple=True,
        metavar="NUMBER=NAME",
        help="Name of a component; may be repeated. Names are stored in RUN/names.yaml.",
    ),
    click.option(
        "--video",
        multiple=True,
        type=click.Choice(("gif", "webp", "mp4", "none")),
        help="Animation format of the sweeps; may be repeated. Writes gif and webp by default; mp4 requires"
        " `pip install 'featgan[video]'`.",
    ),
)

extract_options = option_group(
    click.option("--layer", help="Layer to extract features from; the input of the last linear layer by default."),
    click.option(
        "--cache-name",
        default="blackbox",
        show_default=True,
        help="Name of the feature cache, which is stored with the shards.",
    ),
    click.option(
        "--out",
        type=LOCATION_TYPE,
        metavar="FOLDER",
        help="Folder to write the feature cache to, instead of the folder of the shards, which may be read-only. Select"
        " it with `dataset.feature_cache=FOLDER` for training.",
    ),
    click.option(
        "--num-components",
        type=click.IntRange(1),
        help="Number of whitened principal components to keep; keeps all features by default.",
    ),
    click.option(
        "--task",
        type=click.Choice(EXTERNAL_TASKS),
        help="What the classifier predicts, if its SPEC does not define it; `other` by default.",
    ),
    click.option(
        "--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Number of images per forward pass."
    ),
)


def choose_feature_cache(cache_name: str, out: Location | None) -> str:
    """Return the feature cache that the options --cache-name and --out name, as for `dataset.feature_cache`.

    Raises UserError if both are given, if the name is a path, or if the folder is a URL.
    """
    if out is None and "/" in cache_name:
        raise UserError(f"--cache-name {cache_name}: is a path, not a name; give the folder with --out")
    if out is None:
        return cache_name
    if click.get_current_context().get_parameter_source("cache_name") != ParameterSource.DEFAULT:
        raise UserError(f"--cache-name {cache_name}: has no effect with --out {out}; give one of the two options")
    if out.is_remote:
        raise UserError(f"--out {out}: features cannot be written to a URL; choose a local folder")
    return str(out.path.absolute())


def split_names(text: str) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_step(step: str) -> int | None:
    """Return a step number; None for `latest`."""
    if step == "latest":
        return None
    if not step.isdecimal():
        raise UserError(f"--step {step}: not a step; give a number or latest")
    return int(step)


def run_command(command: click.Command, name: str, arguments: list[str]) -> None:
    """Run a command line and print its log messages and errors to standard error.

    Exits with 2 after an error that the user can fix, and with 128 + N after signal N. Any other error is raised.
    """
    is_debug = "--debug" in arguments
    try:
        install_log_handler(is_debug)
        command.main([word for word in arguments if word != "--debug"], prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        print_line(f"{name}: stopped; run the same command again", err=True)
        sys.exit(130)
    except TrainingInterrupted as interruption:
        print_line(f"featgan: {interruption}", err=True)
        sys.exit(interruption.exit_code)
    except BrokenPipeError:  # from the last flush; click ends a command with 1 as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)  # Python must not write the rest at exit
        sys.exit(1)
    except Exception as error:
        message = user_error_message(error)
        if is_debug or message is None:
            raise
        print_line(f"featgan: {message}", err=True)
        sys.exit(2)
