"""Configuration: precedence, clear refusals, presets."""

from pathlib import Path

import pytest
import yaml

from featgan.config.docs import build_reference
from featgan.config.loading import differences, field_names, load_config, presets, to_yaml, validate
from featgan.config.schema import Config
from featgan.errors import UserError


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training: {steps: 7, seed: 3}\n")
    config = load_config(str(path), ["training.seed=4", "dataset.condition.kind=expression", "generator.dim=8"])
    assert (config.training.steps, config.training.seed, config.training.batch_size) == (7, 4, 16)
    assert config.dataset.condition.kind == "expression" and config.generator.dim == 8


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("generator.dimm=3", r"unknown key 'generator.dimm'; did you mean 'generator.dim'\?"),
        ("trainning.steps=3", r"unknown key 'trainning'; did you mean 'training'\?"),
        ("training.steps=-3", r"training.steps: .*greater than or equal to 1 \(got -3\)"),
        ("training.precision=fp8", r"training.precision: .*'fp32', 'bf16' or 'auto'"),
        ("optimizer.decay_steps=99999999", "decay_steps: 99999999 is more than training.steps"),
        ("second_dataset.condition.kind=expression", "labels only"),
        ("dataset.condition.kind=attributes", "attributes: name them"),
        ("optimizer.generator_rate=.nan", "optimizer.generator_rate"),
        ("training.steps", "section.key=value"),
        ("training.zzzzzz=1", "unknown key 'training.zzzzzz'; training has steps, batch_size"),
        ("losses.qq=3", "unknown key 'losses.qq'; losses has adversarial, penalty_weight"),
        ("dataset.conditon.kind=expression", r"did you mean 'dataset.condition'\?"),
        ("zzzzzz=1", "the top level has run, dataset"),
        ("steps=1", "did you mean 'training.steps'"),
        ("training.generator_rate=.1", "did you mean 'optimizer.generator_rate'"),
        ("training.steps=-1", "^'training.steps=-1': training.steps: Input should be greater"),
        ("training.steps=[", "not valid YAML"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(tmp_path: Path, override: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("")
    with pytest.raises(UserError, match=said) as caught:
        load_config(str(path), [override])
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_file_is_not_blamed_on_an_override(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training: {batch_size: 0}\n")
    with pytest.raises(UserError, match=r"a\.yaml: training\.batch_size"):
        load_config(str(path), ["training.steps=3"])


@pytest.mark.parametrize(
    ("overrides", "blamed"),
    [
        (["training.precision=fp16"], "training.precision=fp16"),
        (["training.precision=fp16", "training.steps=9"], "training.precision=fp16"),
        (["dataset.condition.kind=attributes", "dataset.features=box"], "dataset.condition.kind=attributes"),
        (["dataset.condition.attributes=[Smiling]"], "dataset.condition.attributes=[Smiling]"),
        (["optimizer.decay_steps=9", "training.steps=5"], "optimizer.decay_steps=9"),
        (["training.seed=3", "distribution.accumulation=3"], "distribution.accumulation=3"),
        (["training={precision: fp16}"], "training={precision: fp16}"),
    ],
)
def test_the_override_that_is_wrong_is_blamed(tmp_path: Path, overrides: list[str], blamed: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("")
    with pytest.raises(UserError) as caught:
        load_config(str(path), overrides)
    assert str(caught.value).startswith(f"{blamed!r}: ")


def test_an_override_that_contradicts_the_file_is_blamed(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("optimizer: {decay_steps: 100}\ntraining: {steps: 1000}\n")
    with pytest.raises(UserError, match=r"^'training\.steps=5': optimizer\.decay_steps: 100 is more"):
        load_config(str(path), ["training.seed=3", "training.steps=5"])
    path.write_text("training: {precision: fp16}\n")
    with pytest.raises(UserError, match=r"a\.yaml: training\.precision: fp16"):
        load_config(str(path), ["training.steps=3", "dataset.features=box"])


def test_the_ancestors_preset_is_the_same_by_its_data_and_by_its_method() -> None:
    faces, stargan = load_config("faces"), load_config("stargan")
    assert differences(faces, stargan) == []


def test_a_yaml_mistake_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training:\n  steps: 3\n bad\n")
    with pytest.raises(UserError, match=r"a.yaml:\d+: not valid YAML"):
        load_config(str(path))


def test_yaml_that_expands_or_runs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &x [1, 1]\nb: [*x, *x]\n")
    with pytest.raises(UserError, match="aliases"):
        load_config(str(path))
    path.write_text(f"run: !!python/object/apply:pathlib.Path.touch ['{tmp_path}/x']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(path))
    assert not (tmp_path / "x").exists()


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="the presets are .*debug.*modern"):
        load_config("no-such-preset")


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_loads_by_bare_name(name: str) -> None:
    config = load_config(name)
    assert validate(yaml.safe_load(to_yaml(config)), name) == config


def test_the_presets_of_the_ancestor() -> None:
    for kind in ("reg", "cls"):
        config = load_config(f"affectnet_64d_{kind}")
        assert (config.generator.dim, config.discriminator.dim, config.generator.conditioning) == (128, 128, "tile")
        assert (config.losses.condition_weight, config.training.steps) == (10, 1_000_000)
        condition = config.dataset.condition
        assert (condition.regression, condition.objective, condition.encoding) == ("ccc", "actv", "raw")
    modern = load_config("modern")
    assert modern.generator.conditioning == "modulation" and modern.training.ema_images > 0


def test_differences_leave_operational_keys_out() -> None:
    old = Config()
    assert differences(old, validate({"training": {"num_workers": 9, "save_every": 5}}, "x")) == []
    assert differences(old, validate({"generator": {"dim": 8}}, "x")) == ["generator.dim: 64 -> 8"]


def test_every_field_is_documented() -> None:
    from featgan.config import schema as module

    sections = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, module.Section)
    ]
    missing = [
        f"{each.__name__}.{key}"
        for each in sections
        for key, field in each.model_fields.items()
        if not field.description
    ]
    assert len(sections) > 8 and not missing and "training.steps" in field_names()


def test_the_reference_is_that_of_the_models() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == build_reference(), "run: python -m featgan.config.docs > docs/configuration.md"
