"""Every setting with wrong values of every kind, and what must hold between settings."""

import dataclasses
import math
import pickle
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from molmo_ds import architecture, presets, rules, settings
from molmo_ds import config as configs
from molmo_ds.architecture import TextConfig, VisionConfig
from molmo_ds.config import RunConfig
from molmo_ds.setting_list import Setting, comments, legal

EVERY = settings.settings(RunConfig)
# of every kind: which of them a setting takes is derived from its type
WRONG: list[Any] = [None, True, -1, 1.5, -5e9, 2**70, math.nan, math.inf, -math.inf]
WRONG += ["nonsense", "", [1, 2], [], {"a": 1}, {}]


def takes(hint: Any, value: Any) -> bool:
    """Whether a value, as YAML gives it, is legal for a type: an oracle of its own, slow and plain."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return takes(parts[0], value) and all(_within(limit, value) for limit in parts[1:])
    if origin in (typing.Union, type(int | None)):
        return any(takes(part, value) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        if not isinstance(value, list):
            return False
        of = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        return len(of) == len(value) and all(takes(one, inner) for one, inner in zip(of, value))
    if origin is dict:
        return isinstance(value, dict) and all(takes(parts[1], inner) for inner in value.values())
    if hint is float:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    if hint is Any:
        return True
    return type(value) is hint


def _within(limit: Any, value: Any) -> bool:
    tests = {
        "ge": lambda x: x >= limit.ge,
        "gt": lambda x: x > limit.gt,
        "le": lambda x: x <= limit.le,
    }
    tests |= {"lt": lambda x: x < limit.lt, "min_length": lambda x: len(x) >= limit.min_length}
    return all(test(value) for name, test in tests.items() if hasattr(limit, name))


def key_of(setting: Setting) -> str:
    return setting.name.replace("<name>", "a")


def nested(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.fixture(scope="module")
def base() -> dict:
    return settings.to_dict(RunConfig(model=presets.tiny()))


def test_the_list_of_settings_is_whole() -> None:
    assert len(EVERY) > 125
    leaves = {setting.name.rsplit(".", 1)[-1] for setting in EVERY}
    kinds = [
        kind
        for module in (architecture, configs)
        for kind in vars(module).values()
        if getattr(kind, "__module__", "") == module.__name__
    ]
    kinds = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    blocks = {
        "text",
        "vision",
        "connector",
        "images",
        "video",
        "selection",
        "model",
        "data",
        "prompts",
        "sources",
        "evaluators",
    }  # fields that hold more of them
    assert len(kinds) == 15 and leaves == fields - blocks - {"optim", "lora"}


@pytest.mark.parametrize("setting", EVERY, ids=lambda setting: setting.name)
def test_wrong_values_of_every_kind(setting: Setting, base: dict) -> None:
    key = key_of(setting)
    refused = 0
    for value in WRONG:
        values = settings._over(base, nested(key, value))
        if takes(setting.hint, value):
            continue
        refused += 1
        with pytest.raises(ValueError) as caught:
            settings.from_dict(RunConfig, values)
        said = str(caught.value)
        assert said.startswith(key) and "; it must be " in said and said.endswith("."), said
        assert "\n" not in said, f"one mistake, one sentence: {said}"
    assert refused >= 6, "the oracle takes nearly everything"


@pytest.mark.parametrize(
    "setting", [s for s in EVERY if not s.is_text], ids=lambda setting: setting.name
)
def test_wrong_words_of_the_command_line(setting: Setting) -> None:
    for word in ("nonsense", "-5e9", ".nan", "[1, nonsense]", "{a: nonsense}"):
        if setting.name.endswith("rope_scaling") and word.startswith("{"):
            continue
        with pytest.raises(ValueError, match=key_of(setting).replace(".", r"\.")):
            settings.load(None, [f"{key_of(setting)}={word}"])


def test_all_mistakes_at_once_and_the_nearest_right_one() -> None:
    words = [
        "model.connector.pooling=atention_meanq",
        "micro_batch=0",
        "optim.text.lrr=1",
        "data.sources.a.pth=x",
    ]
    with pytest.raises(ValueError) as caught:
        settings.load(None, words)
    lines = str(caught.value).split("\n")
    assert lines[0] == "The configuration has 4 mistakes."
    assert sorted(line.strip() for line in lines[1:]) == [
        "There is no setting 'data.sources.a.pth'; the nearest one is 'data.sources.<name>.path'.",
        "There is no setting 'optim.text.lrr'; the nearest one is 'optim.text.lr'.",
        "micro_batch is 0; it must be a whole number from 1 to 1048576.",
        "model.connector.pooling is 'atention_meanq'; it must be attention_meanq, attention or stack; the nearest is "
        "attention_meanq.",
    ]


# words, and what the sentence says
BETWEEN = [
    (
        ["model.text.hidden_size=130"],
        "model.text.num_attention_heads is 4; it must divide model.text.hidden_size=130",
    ),
    (["model.text.num_key_value_heads=3"], "it must divide model.text.num_attention_heads=4"),
    (["model.text.head_dim=31"], "model.text.head_dim is 31; it must be an even number"),
    (
        ["model.text.num_experts=4"],
        "num_experts_per_tok is 0; it must be from 1 to model.text.num_experts=4",
    ),
    (
        ["model.text.num_experts=4", "model.text.num_experts_per_tok=5"],
        "num_experts_per_tok is 5; it must be from 1",
    ),
    (["model.text.num_experts_per_tok=2"], "it must be 0, because model.text.num_experts=0"),
    (
        ["model.text.vocab_size=513"],
        "vocab_size is 513; it must be at most model.text.embedding_size=512",
    ),
    (
        ["model.text.additional_vocab_size=4"],
        "additional_vocab_size is 4; it must leave rows for the 5 image tokens",
    ),
    (
        ["model.text.rope_scaling.rope_type=linear"],
        "rope_scaling.rope_type is 'linear'; it must be default, llama3 or yarn",
    ),
    (
        ["model.text.rope_scaling.rope_type=yarn"],
        "rope_scaling.factor is None; it must be a number above 0",
    ),
    (
        ["model.text.qk_norm_per_head=true"],
        "qk_norm_per_head is true; it says how to normalise q and k, so set model.text.qk_norm=true too",
    ),
    (
        ["model.text.rope_scaling_layers=[1, 3]"],
        "rope_scaling_layers has [3]; it must hold layers up to 2",
    ),
    (
        ["model.family=molmo2", "model.text.additional_vocab_size=8"],
        "additional_vocab_size is 8; it must leave rows for the 14 image tokens",
    ),
    (
        ["model.text.rope_scaling.rope_type=llama3"],
        "rope_scaling.factor is None; it must be a number above 0",
    ),
    (
        ["model.text.rope_scaling={rope_type: default, fctor: 8}"],
        "rope_scaling has the unknown key ['fctor']",
    ),
    (
        ["model.vision.patch_size=15"],
        "model.vision.patch_size is 15; it must divide model.vision.image_size=56",
    ),
    (["model.vision.num_attention_heads=3"], "it must divide model.vision.hidden_size=128"),
    (["model.vision.feature_layers=[-1,-5]"], "feature_layers has -5; it must be from -4 to 3"),
    (["model.vision.num_positions=17"], "num_positions is 17; it must be a square number"),
    (["model.connector.pooling_size=5"], "pooling_size is 5; it must be at most 4"),
    (
        ["model.images.crop_mode=overlap-and-resize-c2", "model.images.overlap_margins=[2,2]"],
        "must sum to less than 4",
    ),
    (["micro_batch=3"], "micro_batch is 3; it must divide global_batch=8"),
    (
        ["preset=molmo_7b_d", "data.crops_per_sequence=12"],
        "crops_per_sequence is 12; it must be 13 or more",
    ),
    (["data.sequence_length=8"], "data.sequence_length is 8; it must be above 8"),
    (
        ["max_steps=10", "optim.text.warmup_steps=11"],
        "optim.text.warmup_steps is 11; it must be at most max_steps=10",
    ),
    (
        ["optim.t_max=5", "optim.vision.warmup_steps=6"],
        "vision.warmup_steps is 6; it must be at most optim.t_max=5",
    ),
    ([f"optim.{part}.freeze=true" for part in rules.COMPONENTS], "leave nothing to learn"),
    (
        ["lora.components=[vision,text]", "optim.text.freeze=true"],
        "lora.components names text, which freeze keeps from learning, adapters too; leave out optim.text.freeze",
    ),
    (["max_steps=10", "stop_after=11"], "stop_after is 11; it must be at most max_steps=10"),
    (
        ["max_steps=10", "profile_steps=[3,11]"],
        "profile_steps has [11]; it must hold steps up to max_steps=10",
    ),
    (
        ["data.sources.a.rate=1", "data.sources.b.path=x"],
        "Either all sources of group 'all' have a rate or none: a, b",
    ),
    (["data.sources.a.rate=0"], "The rates of group 'all' must be at least 0, and one above 0"),
    (["data.sources.a.rate=0"], "The rates of group 'all' must be at least 0, and one above 0"),
    (
        ["data.sources.a.path=x", "data.group_rates.b=1"],
        "group_rates names ['b'], but the sources' groups are ['all']",
    ),
    (["data.group_rates.all=0", "data.sources.a.path=x"], "data.group_rates are all 0"),
    (
        ["data.sources.a.rate=1", "data.sources.a.size=3"],
        "data.sources.a has a rate, so size and sampling_rate mean nothing",
    ),
    (
        ["preset=molmo_7b_d", "data.crops_per_sequence=24", "data.sources.a.max_crops=36"],
        "data.sources.a.max_crops is 36; it must be below data.crops_per_sequence=24",
    ),
    (
        ["evaluators.a.task=chart_qa", "evaluators.a.prompts.message_format=none"],
        "a.prompts belongs to a loss",
    ),
    (
        ["evaluators.a.path=x", "evaluators.a.sources.b.path=y"],
        "evaluators.a needs one of path and sources",
    ),
    (["preset=tinny"], "There is no preset 'tinny'; the nearest one is 'tiny'"),
    (["preset=tiny/clip"], "There is no preset 'tiny/clip'"),
]


@pytest.mark.parametrize(
    ("words", "said"), BETWEEN, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_what_must_hold_between_settings(words: list[str], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        settings.load(None, words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_edges_of_the_rules_are_legal() -> None:
    legal_words = (
        ["micro_batch=4"], ["max_steps=10", "optim.text.warmup_steps=10"], ["model.vision.feature_layers=[-4,3]"],
        ["data.sequence_length=9"], ["preset=molmo_7b_d", "data.crops_per_sequence=13"], ["stop_after=30000"],
        ["model.text.head_dim=30"], ["model.text.hidden_size=130", "model.text.head_dim=32"],
        ["model.text.additional_vocab_size=5"], ["model.connector.pooling_size=4"], ["max_steps=3"],
    )  # fmt: skip
    for words in legal_words:
        settings.load(None, words)


def test_a_default_warm_up_in_a_short_run_is_said() -> None:
    assert rules.short_warmups(settings.load(None, ["max_steps=2000"])) == []
    said = rules.short_warmups(settings.load(None, ["max_steps=1999"]))
    assert (
        len(said) == 1
        and "optim.vision.warmup_steps=2000, optim.text.warmup_steps=2000 and only 1999" in said[0]
    )


def test_every_preset_is_legal() -> None:
    names = [*presets.PRESETS, "molmo_7b_d/siglip", "molmo_72b/dinov2", "molmoe_1b/metaclip"]
    for name in names:
        assert settings.load(None, [f"preset={name}"]).model == presets.get(name)


FILES = {
    "tab": (b"seed: 3\ndata:\n\tseed: 1\n", "line 3 is not YAML"),
    "list": (b"- seed: 1\n", "holds no settings"),
    "twice": (b"seed: 1\nmax_steps: 3\nseed: 2\n", "line 3 is not YAML: found duplicate key seed"),
    "empty": (b"", "is empty"),
    "comments": (b"# nothing\n", "is empty"),
    "latin": (b"out: caf\xe9\n", "it is no text in UTF-8"),
    "two": (b"seed: 1\n---\nseed: 2\n", "is not YAML"),
    "tag": (b"out: !!python/name:os.system\n", "line 1 is not YAML"),
    "number": (b"out: 2024\n", "out is 2024; it must be a text (a text of digits needs quotes"),
    "interpolation": (b"seed: ${nothing}\n", "cannot be read"),
    "a word": (b"hello\n", "There is no setting 'hello'"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    content, words = FILES[name]
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        settings.load(file)
    said = str(caught.value)
    assert words in said and "\n" not in said
    assert "run.yaml" in said or name in ("number", "interpolation", "a word")


@pytest.mark.parametrize(
    ("value", "read"), [("010", 8), ("-0_7", -7), ("1:30", 90), ("1:00:00", 3600), ("1:30.5", 90.5)]
)
def test_numbers_of_other_bases_are_refused(value: str, read: float, tmp_path: Path) -> None:
    """YAML 1.1 reads 010 as 8 and 1:30 as 90, which nobody means who writes max_steps or a time so."""
    said = f"has {value}.*which YAML reads as {read};"
    with pytest.raises(ValueError, match=f"The override 'seed={value}' {said}"):
        settings.load(None, [f"seed={value}"])
    for text in (f"seed: 1\noptim: {{betas: [0.9, {value}]}}", f"data: {{sources: {{{value}: }}}}"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"a.yaml {said}"):
            settings.load(tmp_path / "a.yaml")


def test_other_numbers_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 0x10\nmax_steps: 1_000\nout: '010'\nwandb: 1:60b\n")
    made = settings.load(tmp_path / "a.yaml", ["wandb_group=010", "data.seed=0"])
    assert (made.seed, made.max_steps, made.data.seed) == (16, 1000, 0)
    assert (made.out, made.wandb, made.wandb_group) == ("010", "1:60b", "010")
    words = ["a: &a [1]\n", *(f"{n}: &{n} [*{p}, *{p}]\n" for p, n in zip("abc", "bcd"))]
    (tmp_path / "b.yaml").write_text("".join(words))
    with pytest.raises(ValueError, match="There is no setting 'a'"):
        settings.load(tmp_path / "b.yaml")


def test_words_mean_the_same_with_and_without_dashes() -> None:
    plain = settings.load(
        None, ["optim.text.lr=1e-3", "wandb=null", "model.vision.feature_layers=[-1,-2]"]
    )
    dashed = settings.load(
        None, ["--optim.text.lr=1e-3", "--wandb=null", "--model.vision.feature_layers=[-1,-2]"]
    )
    assert plain == dashed and plain.optim.text.lr == 1e-3 and plain.wandb is None


def test_bare_flags_are_true() -> None:
    assert settings.load(None, ["--dry_run", "--model.text.qk_norm"]).dry_run
    for word in ("--seed", "dry_run", "--wandb"):
        with pytest.raises(ValueError, match="is not an override; write key=value"):
            settings.load(None, [word])


def test_an_entry_of_a_list(tmp_path: Path) -> None:
    made = settings.load(None, ["model.vision.feature_layers.1=-3", "profile_steps.0=5"])
    assert made.model.vision.feature_layers == (-1, -3) and made.profile_steps == (5,)
    file = tmp_path / "run.yaml"
    file.write_text("profile_steps: [3, 4]\nwandb_tags: [a]\n")
    made = settings.load(file, ["profile_steps.1=9", "profile_steps.2=11", "wandb_tags.0=b"])
    assert (made.profile_steps, made.wandb_tags) == ((3, 9, 11), ("b",))
    with pytest.raises(
        ValueError, match="no entry 3 of profile_steps, which has 2; give the whole"
    ):
        settings.load(file, ["profile_steps.3=9"])


def test_an_entry_of_a_recipe_is_taken_away(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {sources: {a: {path: x, group: g}, b: {path: y}}, group_rates: {g: 1, all: 2}}\n"
        "evaluators: {e: {path: z}}\n"
    )
    gone = ["data.sources.a=null", "data.group_rates.g=null", "--evaluators.e=null"]
    made = settings.load(file, gone)
    assert list(made.data.sources) == ["b"] and not made.evaluators
    assert list(settings.load(file, [*gone, "data.sources.c.path=w"]).data.sources) == ["b", "c"]
    with pytest.raises(
        ValueError, match="no data.sources.c to take away; of data.sources there are: a, b"
    ):
        settings.load(file, ["data.sources.c=null"])
    with pytest.raises(ValueError, match=r"group_rates names \['all', 'g'\]"):
        settings.load(file, ["data.sources.a=null"])


def test_files_over_each_other(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("epochs: 4\noptim: {text: {lr: 1e-3, warmup_steps: 5}}\n")
    (tmp_path / "two.yaml").write_text("max_steps: 70\noptim: {text: {lr: 2e-3}}\n")
    (tmp_path / "both.yaml").write_text("max_steps: 70\nepochs: 2\n")
    one, two, both = (str(tmp_path / f"{name}.yaml") for name in ("one", "two", "both"))
    made = settings.load([one, two])
    assert (made.epochs, made.max_steps) == (None, 70)
    assert (made.optim.text.lr, made.optim.text.warmup_steps) == (2e-3, 5)
    assert settings.load([two, one]).epochs == 4
    assert settings.load(one, ["max_steps=9"]).epochs is None
    assert settings.load(two, ["epochs=0.5"]).epochs == 0.5
    with pytest.raises(ValueError, match="gives both max_steps and epochs; leave one out"):
        settings.load(both)


def test_prompts_of_an_evaluator_change_those_of_the_run() -> None:
    words = ["data.prompts.system_prompt=style", "data.prompts.message_format=none"]
    words += ["evaluators.a.path=x", "evaluators.a.prompts.system_prompt=none"]
    made = settings.load(None, [*words, "evaluators.b.path=y"])
    own = made.evaluators["a"].prompts
    assert (own.system_prompt, own.message_format) == ("none", "none")
    assert made.evaluators["b"].prompts is None


def test_texts_are_taken_as_they_stand() -> None:
    made = settings.load(
        None,
        ["out=007", "data.sources.x.path=/data/run #2", "wandb=1e5", "data.tokenizer='quoted'"],
    )
    assert (made.out, made.data.sources["x"].path) == ("007", "/data/run #2")
    assert (made.wandb, made.data.tokenizer) == ("1e5", "quoted")
    for text in (
        "caf\u00e9",
        "\U0001f600",
        'a "b" \\ c',
        "[x]",
        "{x}",
        "a: b",
        "*",
        "'",
        "a # b",
        "a\nb",
    ):
        assert settings.load(None, [f"out=./{text}"]).out == f"./{text}"


def test_home_is_a_folder_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    file = tmp_path / "run.yaml"
    file.write_text(
        "out: ~/out\ninit_from: ~/from\ndata: {tokenizer: ~/words, sources: {a: {path: ~/a}}}\n"
    )
    made = settings.load(file, ["strategy=~/mine.json", "evaluators.b.path=~/b"])
    paths = [
        made.out,
        made.init_from,
        made.data.tokenizer,
        made.data.sources["a"].path,
        made.strategy,
    ]
    paths.append(made.evaluators["b"].path)
    names = ("out", "from", "words", "a", "mine.json", "b")
    assert paths == [f"/home/of/mine/{name}" for name in names]
    with pytest.raises(
        ValueError, match="out is '~nobody-here/x': there is no home folder ~nobody-here"
    ):
        settings.load(None, ["out=~nobody-here/x"])
    assert settings.load(None, ["out=./~x"]).out == "./~x"


def test_saved_and_read_again(tmp_path: Path) -> None:
    made = settings.load(
        None,
        ["preset=tiny_moe", "data.sources.a.path=x", "optim.text.lr=1e-3", "profile_steps=[1,2]"],
    )
    settings.save(made, tmp_path / "config.yaml")
    assert settings.load(tmp_path / "config.yaml") == made == pickle.loads(pickle.dumps(made))
    assert settings.from_dict(RunConfig, settings.to_dict(made)) == made
    made = settings.load(None, ["epochs=2"])
    settings.save(made, tmp_path / "config.yaml")
    assert settings.load(tmp_path / "config.yaml") == made


def test_fields_are_checked_in_python_too() -> None:
    for wrong in (
        {"hidden_size": -1},
        {"norm_type": "rmss"},
        {"attention_dropout": math.nan},
        {"hiden_size": 3},
    ):
        with pytest.raises(ValueError):
            TextConfig(**wrong)
        with pytest.raises(ValueError):
            replace(TextConfig(), **wrong)
    with pytest.raises(ValueError, match="positional"):
        TextConfig("qwen2")
    with pytest.raises(dataclasses.FrozenInstanceError):
        TextConfig().hidden_size = 3  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    assert comments(RunConfig)["activation_checkpointing"].startswith("what is recomputed")
    assert comments(VisionConfig)["patch_size"] == "side of a patch in pixels; divides image_size"
    for setting in EVERY:
        assert legal(setting.hint), setting.name
    # transformers' own names say it
    plain = {"hidden_size", "num_attention_heads", "attention_dropout"}
    mute = [
        s.name
        for s in EVERY
        if not s.comment and not s.choices and s.name.rsplit(".", 1)[-1] not in plain
    ]
    assert len(mute) < 30, mute


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=1", "--seed=2"], ["seed is given more than once; seed=2 counts."]),
        (["seed=1", "seed=1"], []),
        (["--overwrite", "overwrite=true"], []),
        (
            ["--overwrite", "--overwrite=false"],
            ["overwrite is given more than once; overwrite=false counts."],
        ),
        (["max_steps=9", "epochs=2"], ["Of max_steps and epochs the later one counts, epochs."]),
        (["optim.text.lr=1e-5", "optim.vision.lr=1e-5"], []),
    ],
)
def test_overrides_that_are_taken_back_are_told(words: list[str], said: list[str]) -> None:
    assert settings.overridden(words) == said
    settings.load(None, words)


@pytest.mark.parametrize("word", ["out=\udcff", "strategy=a\udc80b", "\udcff=1"])
def test_an_override_that_is_no_text_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"^The override '.*\\udc.*' is no text in UTF-8"):
        settings.load(None, [word])
