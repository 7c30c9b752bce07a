from pathlib import Path

import pytest
import yaml

import intclip
from intclip.errors import RecipeError
from intclip.methods.registry import method_options
from intclip.strict_yaml import parse_yaml
from intclip.training.recipe import Recipe, builtin_recipes, load_recipe
from intclip.training.recipe_file import RECIPES, dump_recipe, known_keys

# Recipes of lite-align are of another kind, with separate tests.
FILES = [path for path in sorted(Path(intclip.__file__).parent.rglob("recipes/**/*.yaml")) if "align" not in path.parts]


def test_every_recipe_file_is_known_by_name():
    assert sorted(path.stem for path in FILES if path.stem != "defaults") == builtin_recipes()
    assert {path.parent for path in FILES} == {RECIPES}


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_recipe_loads_and_begins_with_its_command(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert method_options(recipe.method.name).model_validate(recipe.method.options)
    comment = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\nname:")[0]
    assert any(f"intclip {command}" in comment for command in (f"train {name}", "distill"))
    assert all(line.startswith("#") or line.startswith("base:") for line in comment.splitlines())


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_dumped_recipe_is_the_same_recipe(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe.model_dump(mode="json")))
    assert load_recipe(path) == recipe


def test_defaults_hold_every_key_and_no_other():
    defaults = yaml.safe_load((RECIPES / "defaults.yaml").read_text(encoding="utf-8"))

    def keys(content: dict, prefix: str = "") -> set[str]:
        found = set()
        for key, value in content.items():
            found.add(prefix + key)
            if isinstance(value, dict):
                found |= keys(value, f"{prefix}{key}.")
        return found

    assert keys(defaults) == set(known_keys(Recipe))
    assert load_recipe("tiny").train.batch_size == defaults["train"]["batch_size"]


def test_protocols_hold_what_paper_and_code_say():
    paper, released, clean = (load_recipe(name) for name in ("paper", "released", "clean"))
    assert (paper.optim.lr, paper.schedule.epochs, paper.train.batch_size) == (0.002, 50, 32)
    assert (released.optim.lr, released.schedule.epochs, released.train.batch_size) == (0.0004, 60, 64)
    assert (paper.backbone.split, released.backbone.split, clean.backbone.split) == ("paper", "released", "paper")
    assert (paper.backbone.normalize, released.backbone.normalize, released.backbone.crop) == (True, False, "squash")
    assert (released.evaluate.select, released.evaluate.thresholds, released.evaluate.threshold) == (
        "test",
        "fixed",
        0.5,
    )
    assert (clean.evaluate.select, clean.evaluate.thresholds, clean.data.soft_targets) == ("val", "global", True)
    options = method_options("intclip").model_validate(released.method.options).model_dump()
    assert (options["aggregation"], options["loss"]["scale"], options["lr"]["deep"]) == ("released", 0.03, 0.1)
    for emotion in ("paper-emotion", "released-emotion", "clean-emotion"):
        assert load_recipe(emotion, ["backbone.name=ViT-B/32"]).train.batch_size == 16


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rat=1", "'optim.learning_rat'"),
        ("optim.momntum=0.9", "'optim.momntum'.*did you mean 'optim.momentum'"),
        ("schdule.epochs=3", "'schdule'.*did you mean 'schedule'"),
        ("lr=3", "'lr'.*did you mean 'optim.lr'"),
        ("train.lr=3", "'train.lr'.*did you mean 'optim.lr'"),
        ("augment.flp=0.5", "'augment.flp'.*did you mean 'augment.flip'"),
        (
            "method.options.agregation=sum",
            "'method.options.agregation'.*did you mean 'method.options.aggregation'",
        ),
        ("method.options.loss.gama_neg=3", "'method.options.loss.gamma_neg'"),
        ("method.name=intclp", "'intclp'.*did you mean intclip"),
        ("optim.lr=-1", "optim.lr.* 0.*-1"),
        ("optim.lr=.inf", "optim.lr.*inf$"),
        ("optim.betas=[1, 0.9]", "optim.betas.0.* 1.* 1"),
        ("optim.multipliers.deep=-1", "optim.multipliers.deep.* 0.*-1"),
        ("optim.name=lion", "optim.name.*'sgd', 'adam' or 'adamw'.*'lion'"),
        ("schedule.warmup_epochs=99", "schedule: warmup_epochs 99.* must be below epochs 50$"),
        ("data.teacher=5", "data.teacher: .*5$"),
        ("train=3", "clean: train: "),
        ("optim.lr", "--set 'optim.lr'.*section.key=value"),
        ("optim..lr=3", "section.key=value"),
        ("optim.lr=[", "the value is not valid YAML"),
        ("method.options.sentence_form=*a", "the value is not valid YAML"),
    ],
)
def test_wrong_overrides_say_what_and_how_to_mend(override, message):
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe("clean", [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("claen", "did you mean 'clean'?"), ("zzz", r"'zzz'.*\bclean\b"), ("nowhere.yaml", r"nowhere\.yaml")],
)
def test_unknown_recipe_names_the_nearest(name, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(name)


def test_overrides_are_yaml():
    recipe = load_recipe(
        "clean", ["augment=null", "cache.path=off", "schedule.warmup_lr=1e-6", "backbone.name=ViT-B/32"]
    )
    assert recipe.augment is None
    assert recipe.cache.path == "off"
    assert recipe.schedule.warmup_lr == 1e-6
    assert recipe.backbone.name == "ViT-B/32"


def test_another_method_drops_the_options_of_the_one_before():
    assert load_recipe("clean", ["method.name=linear_probe"]).method.options == {}
    assert load_recipe("clean", ["method.name=intclip"]).method.options


def test_recipes_may_stand_on_files(tmp_path):
    (tmp_path / "a.yaml").write_text("base: proxy-lite\nname: a\noptim: {lr: 0.5}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nname: b\nschedule: {epochs: 3}\n")
    recipe = load_recipe(tmp_path / "b.yaml")
    assert (recipe.name, recipe.optim.lr, recipe.schedule.epochs, recipe.backbone.name) == ("b", 0.5, 3, "lite")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: r.yaml\n", "cyclic bases"),
        ("base: [a]\n", "base must be the name or file of one recipe"),
        ("- a\n- b\n", "a recipe is a mapping of sections"),
        ("", "a recipe is a mapping of sections"),
        ("optim: {lr: 1}\noptim: {lr: 2}\n", "key 'optim' is given twice"),
        ("a: &x [1]\nb: *x\n", "aliases are not allowed"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("optim: {lr: \n", "not valid YAML"),
        ("x: " + "[" * 5000, "not valid YAML"),
        ("date: 2024-99-99\n", "not valid YAML"),
        ("#" * 1_000_001, "larger than a recipe may be"),
    ],
)
def test_malformed_files_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_binary_file_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")


def test_strict_yaml_keeps_plain_values():
    assert parse_yaml("{a: 1, b: [x, null, true], c: {d: 1.5}}") == {"a": 1, "b": ["x", None, True], "c": {"d": 1.5}}
