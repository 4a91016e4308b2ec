"""Copy the presets into the package at build time; all metadata are in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPresets(build_py):
    """Copy configs/ to featgan/configs, so that `featgan train debug` works from a wheel."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        presets = Path(__file__).parent / "configs"
        target = Path(self.build_lib) / "featgan" / "configs"
        for preset in presets.rglob("*.yaml"):
            copy = target / preset.relative_to(presets)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(preset, copy)


setup(cmdclass={"build_py": BuildWithPresets})
