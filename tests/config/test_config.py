"""Configuration loading: precedence, one-line errors, presets, and the generated reference page."""

from pathlib import Path

import pytest
import yaml

from featgan.config import schema
from featgan.config.base import ConfigModel, list_keys
from featgan.config.docs import build_reference
from featgan.config.loading import find_presets, load_config, parse_config, to_yaml
from featgan.config.schema import Config
from featgan.errors import UserError


def test_precedence_is_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training: {steps: 7, seed: 3}\n")
    config = load_config(str(path), ["training.seed=4", "dataset.condition.kind=expression", "generator.dim=8"])
    assert (config.training.steps, config.training.seed, config.training.batch_size) == (7, 4, 16)
    assert config.dataset.condition.kind == "expression" and config.generator.dim == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.condition.kind={a: b}", r"dataset.condition.kind: "),
        ("dataset.condition.kind=[a]", r"dataset.condition.kind: "),
        ("generator.dimm=3", r"unknown key 'generator.dimm'; did you mean 'generator.dim'\?"),
        ("trainning.steps=3", r"unknown key 'trainning'; did you mean 'training'\?"),
        ("training.steps=-3", r"training.steps: .*greater than or equal to 1 \(got -3\)"),
        ("training.precision=fp8", r"training.precision: .*'fp32', 'bf16' or 'auto'"),
        ("optimizer.lr_decay_steps=99999999", "lr_decay_steps: 99999999 is larger than training.steps"),
        ("second_dataset.condition.kind=expression", "labels only"),
        ("dataset.condition.kind=attributes", "attributes: list the attribute names"),
        ("optimizer.generator_lr=.nan", "optimizer.generator_lr"),
        ("training.steps", "section.key=value"),
        ("training.zzzzzz=1", "unknown key 'training.zzzzzz'; training has steps, batch_size"),
        ("losses.qq=3", "unknown key 'losses.qq'; losses has adversarial, gp_weight"),
        ("dataset.conditon.kind=expression", r"did you mean 'dataset.condition'\?"),
        ("zzzzzz=1", "the top level has run_dir, dataset"),
        ("steps=1", "did you mean 'training.steps'"),
        ("training.generator_lr=.1", "did you mean 'optimizer.generator_lr'"),
        ("training.steps=-1", "^'training.steps=-1': training.steps: Input should be greater"),
        ("training.steps=[", "not valid YAML"),
        ("evaluation.selection_metric=cccc", "^.*: evaluation.selection_metric: 'cccc' .*; did you mean 'ccc'"),
        ("evaluation.selection_metric=-kid", "^.*: evaluation.selection_metric: '-kid': remove the minus sign"),
    ],
)
def test_errors_are_one_line_with_a_remedy(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("")
    with pytest.raises(UserError, match=message) as caught:
        load_config(str(path), [override])
    assert "\n" not in str(caught.value)


def test_error_in_the_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training: {batch_size: 0}\n")
    with pytest.raises(UserError, match=r"a\.yaml: training\.batch_size"):
        load_config(str(path), ["training.steps=3"])


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        (["training.precision=fp16"], "training.precision=fp16"),
        (["training.precision=fp16", "training.steps=9"], "training.precision=fp16"),
        (["dataset.condition.kind=attributes", "dataset.feature_cache=other"], "dataset.condition.kind=attributes"),
        (["dataset.condition.attributes=[Smiling]"], "dataset.condition.attributes=[Smiling]"),
        (["optimizer.lr_decay_steps=9", "training.steps=5"], "optimizer.lr_decay_steps=9"),
        (["training.seed=3", "distributed.gradient_accumulation_steps=3"], "distributed.gradient_accumulation_steps=3"),
        (["training={precision: fp16}"], "training={precision: fp16}"),
    ],
)
def test_error_names_the_override_that_caused_it(tmp_path: Path, overrides: list[str], cause: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("")
    with pytest.raises(UserError) as caught:
        load_config(str(path), overrides)
    assert str(caught.value).startswith(f"{cause!r}: ")


def test_error_names_the_override_that_contradicts_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("optimizer: {lr_decay_steps: 100}\ntraining: {steps: 1000}\n")
    with pytest.raises(UserError, match=r"^'training\.steps=5': optimizer\.lr_decay_steps: 100 is larger"):
        load_config(str(path), ["training.seed=3", "training.steps=5"])
    path.write_text("training: {precision: fp16}\n")
    with pytest.raises(UserError, match=r"a\.yaml: training\.precision: fp16"):
        load_config(str(path), ["training.steps=3", "dataset.feature_cache=other"])


@pytest.mark.parametrize(("warmup_steps", "n_critic", "min_steps"), [(40, 5, 45), (42, 5, 45), (40, 1, 41)])
def test_error_names_the_minimum_number_of_steps(warmup_steps: int, n_critic: int, min_steps: int) -> None:
    training = {"discriminator_warmup_steps": warmup_steps, "n_critic": n_critic}
    assert parse_config({"training": training | {"steps": min_steps}}, "test").training.steps == min_steps
    with pytest.raises(
        UserError, match=rf"^test: training\.steps: {min_steps - 1} .*; set it to at least {min_steps}$"
    ):
        parse_config({"training": training | {"steps": min_steps - 1}}, "test")


def test_yaml_error_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training:\n  steps: 3\n bad\n")
    with pytest.raises(UserError, match=r"a.yaml:\d+: not valid YAML"):
        load_config(str(path))


def test_yaml_aliases_and_tags_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &x [1, 1]\nb: [*x, *x]\n")
    with pytest.raises(UserError, match="aliases"):
        load_config(str(path))
    path.write_text(f"run_dir: !!python/object/apply:pathlib.Path.touch ['{tmp_path}/x']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(path))
    assert not (tmp_path / "x").exists()


def test_unknown_preset_error_lists_the_presets() -> None:
    with pytest.raises(UserError, match="the presets are .*debug.*modern"):
        load_config("no-such-preset")


@pytest.mark.parametrize("name", sorted(find_presets()))
def test_every_preset_loads_by_name(name: str) -> None:
    config = load_config(name)
    assert parse_config(yaml.safe_load(to_yaml(config)), name) == config


def test_presets_differ_from_each_other() -> None:
    configs = [load_config(name).model_copy(update={"run_dir": Path("run")}) for name in find_presets()]
    assert len({to_yaml(config) for config in configs}) == len(configs)


def test_presets_of_the_original_implementation() -> None:
    for kind in ("reg", "cls"):
        config = load_config(f"affectnet_64d_{kind}")
        assert (config.generator.dim, config.discriminator.dim, config.generator.conditioning) == (128, 128, "tile")
        assert (config.losses.condition_weight, config.training.steps) == (10, 1_000_000)
        condition = config.dataset.condition
        assert (condition.regression_loss, condition.loss_on, condition.encoding) == ("ccc", "features", "raw")
    modern = load_config("modern")
    assert modern.generator.conditioning == "adain" and modern.training.ema_half_life_images > 0


def test_every_field_is_documented() -> None:
    sections = [value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, ConfigModel)]
    missing = [
        f"{section.__name__}.{key}"
        for section in sections
        for key, field in section.model_fields.items()
        if not field.description
    ]
    assert len(sections) > 8 and not missing and "training.steps" in list_keys(Config)


def test_reference_page_is_generated_from_the_models() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == build_reference(), "run: python -m featgan.config.docs > docs/configuration.md"
