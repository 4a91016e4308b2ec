"""Rendering a checkpoint: labelled grids, animations and the report, for validation images or any images of the user's."""

import os
import platform
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan import __version__
from featgan.blackbox.load import load_blackbox
from featgan.checkpoint import Model, load_model
from featgan.data.features import FeatureCache
from featgan.data.files import explain_write_errors, write_whole
from featgan.data.shards import ShardSet, Split
from featgan.directions import class_means
from featgan.errors import UserError
from featgan.images import to_float
from featgan.progress import console, track
from featgan.report.animation import animation_frames, encode_gif, encode_webp, there_and_back
from featgan.report.cards import ComponentFacts
from featgan.report.grids import render_grid
from featgan.report.page import Report, build_page
from featgan.report.records import checkpoint_hashes, newest_evaluation, read_config, read_metrics
from featgan.report.rendering import Rendering, difference_scale, render_sweep
from featgan.report.sources import Sources, label_names, read_folder, sample_rows
from featgan.report.sweeps import Subject, build_sweeps

MOST_PER_CLASS = 2000
"""Training images whose features make a class's mean."""
REMEDY = "free some space or make the folder writable, and run the command again"


@dataclass(frozen=True)
class Material:
    """The data the run was trained on: its shards, and its feature cache where the condition is features."""

    shards: ShardSet
    cache: FeatureCache | None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the black box's outputs."""
        if self.cache is None:
            return ()
        if self.cache.output_kind == "valence_arousal":
            return ("valence", "arousal")
        names = self.cache.class_names
        known = len(names) == self.cache.output_dim
        return names if known else tuple(f"output {index + 1}" for index in range(self.cache.output_dim))


def render_run(
    run: Path,
    step: int | None = None,
    images: Path | None = None,
    directions: Sequence[str] | None = None,
    num_images: int = 6,
    num_components: int = 10,
    seed: int = 0,
) -> Path:
    """Render a checkpoint (the newest by default) into RUN/renders/step-XXXXXXXX and RUN/report.html; returns the latter.

    `images` is a folder of any images, read in place of the run's validation images; `directions` names the ones
    wanted, all by default. UserError for a run, folder or direction that cannot be rendered.
    """
    assert num_images >= 1 and num_components >= 1
    model = load_model(run, step)
    material = open_material(model, needed=images is None)
    sources = choose_sources(model, material, images, num_images, seed)
    subject = build_subject(model, material, sources, num_components)
    sweeps = build_sweeps(subject, directions)
    reconstruction = reconstruct(model, sources)
    renderings = [
        render_sweep(model.edit, sources, sweep, reconstruction) for sweep in track(sweeps, "editing", unit="directions")
    ]
    scale = difference_scale(renderings)
    write_renders(run / "renders" / f"step-{model.step:08d}", sources, renderings, scale)
    report = build_report(run, model, material, subject, sources, renderings, scale)
    report = describe_command(report, run, images, directions)
    page = run / "report.html"
    with explain_write_errors(page, REMEDY):
        write_whole(page, build_page(report).encode())
    return page
