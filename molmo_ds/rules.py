"""Rules between settings: rows (whether it is wrong, what is said), asked when a configuration is read."""

from collections.abc import Iterable, Iterator
from typing import Any

from molmo_ds.architecture import ImageConfig, MolmoConfig, TextConfig, VisionConfig
from molmo_ds.config import COMPONENTS, ComponentConfig, RunConfig, SourceConfig

Rows = Iterator[tuple[bool, str]]
# ids from vocab_size on that mean parts of a picture or a video (data/tokens.py)
IMAGE_IDS = {"molmo": 5, "molmo2": 14, "hemolmo": 6}
ROPES = {  # rope_type -> (numbers that it needs, numbers that it may have)
    "default": ((), ()),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
    ),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow"),
    ),
}


def refuse(rows: Iterable[tuple[bool, str]]) -> None:
    """Raise one ValueError with the sentence of every row that is wrong."""
    said = [sentence for wrong, sentence in rows if wrong]
    if said:
        raise ValueError(together(said))


def together(sentences: list[str]) -> str:
    """One mistake as its sentence; several as a list, one a line."""
    if len(sentences) == 1:
        return sentences[0]
    return "\n  ".join([f"The configuration has {len(sentences)} mistakes.", *sentences])


def model(config: MolmoConfig, prefix: str = "model.") -> Rows:
    """An architecture; `prefix` is that of its keys."""
    yield from _text(config.text, IMAGE_IDS[config.family], f"{prefix}text.")
    yield from _vision(config.vision, f"{prefix}vision.")
    several = config.images.several_max_crops
    yield (
        several is not None and several < config.images.max_crops and config.family == "molmo",
        f"{prefix}images.several_max_crops is {several}; with {prefix}family=molmo one of several pictures has as many"
        " crops as a single one, set it to null.",
    )
    yield (
        (config.selection is None) != (config.family != "hemolmo"),
        f"{prefix}selection and {prefix}family=hemolmo go together; set both or neither.",
    )
    yield (
        config.selection is not None and config.images.crop_mode == "resize",
        f"HeMolmo chooses windows of crops; set {prefix}images.crop_mode=overlap-and-resize-c2.",
    )
    side = config.vision.image_size // config.vision.patch_size
    pooling = config.connector.pooling_size
    yield (
        pooling > side,
        f"{prefix}connector.pooling_size is {pooling}; it must be at most {side}, the patches along a crop's side.",
    )
    frames = config.video.pooling_size or pooling
    yield (
        frames > side and frames != pooling,
        f"{prefix}video.pooling_size is {frames}; it must be at most {side}, the patches along a frame's side.",
    )
    yield (
        config.connector.pooling == "stack" and frames != pooling,
        f"{prefix}video.pooling_size is {frames}; with {prefix}connector.pooling=stack it must be "
        f"{prefix}connector.pooling_size={pooling}, or null.",
    )
    yield from _images(config.images, side, f"{prefix}images.")


def _text(text: TextConfig, image_ids: int, at: str) -> Rows:
    heads = text.num_attention_heads
    keys = text.num_key_value_heads
    width = text.hidden_size
    yield (
        text.head_dim is None and bool(width % heads),
        f"{at}num_attention_heads is {heads}; it must divide {at}hidden_size={width}, or set {at}head_dim.",
    )
    size = text.head_width
    yield (
        size % 2 == 1 or size == 0,
        f"{at}head_dim is {size}; it must be an even number of 2 or more, because rotary positions turn pairs.",
    )
    yield (
        bool(heads % keys),
        f"{at}num_key_value_heads is {keys}; it must divide {at}num_attention_heads={heads}.",
    )
    chosen = text.num_experts_per_tok
    yield (
        text.num_experts > 0 and not 1 <= chosen <= text.num_experts,
        f"{at}num_experts_per_tok is {chosen}; it must be from 1 to {at}num_experts={text.num_experts}.",
    )
    yield (
        text.num_experts == 0 and chosen > 0,
        f"{at}num_experts_per_tok is {chosen}; it must be 0, because {at}num_experts=0 makes a dense model.",
    )
    yield (
        text.vocab_size > text.embedding_size,
        f"{at}vocab_size is {text.vocab_size}; it must be at most {at}embedding_size={text.embedding_size}.",
    )
    rows = text.embedding_size + text.additional_vocab_size
    yield (
        text.vocab_size + image_ids > rows,
        f"{at}additional_vocab_size is {text.additional_vocab_size}; it must leave rows for the {image_ids} image "
        f"tokens, whose ids start at {at}vocab_size={text.vocab_size}.",
    )
    yield (
        text.qk_norm_per_head and not text.qk_norm,
        f"{at}qk_norm_per_head is true; it says how to normalise q and k, so set {at}qk_norm=true too.",
    )
    layers = text.num_hidden_layers
    late = [layer for layer in text.rope_scaling_layers or () if layer >= layers]
    yield (
        bool(late),
        f"{at}rope_scaling_layers has {late[:1]}; it must hold layers up to {layers - 1}.",
    )
    yield from _rope(text.rope_scaling, f"{at}rope_scaling")


def _rope(scaling: dict[str, Any] | None, key: str) -> Rows:
    if scaling is None:
        return
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    yield (
        kind not in ROPES,
        f"{key}.rope_type is {kind!r}; it must be default, llama3 or yarn.",
    )
    if kind not in ROPES:
        return
    needed, others = ROPES[kind]
    known = needed + others if kind != "default" else ROPES["llama3"][0]
    unknown = sorted(set(scaling) - {"rope_type", "type", *known})
    yield (
        bool(unknown),
        f"{key} has the unknown key {unknown[:1]}; it has rope_type, {', '.join(known)}.",
    )
    for name in (*needed, *(name for name in others if scaling.get(name) is not None)):
        value = scaling.get(name)
        wrong = (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < float("inf")
        )
        yield wrong, f"{key}.{name} is {value!r}; it must be a number above 0."
        if wrong:
            return
    if kind == "llama3":
        low = scaling["low_freq_factor"]
        high = scaling["high_freq_factor"]
        yield (
            high <= low,
            f"{key}.high_freq_factor is {high}; it must be above low_freq_factor={low}.",
        )


def _vision(vision: VisionConfig, at: str) -> Rows:
    size = vision.image_size
    patch = vision.patch_size
    yield bool(size % patch), f"{at}patch_size is {patch}; it must divide {at}image_size={size}."
    heads = vision.num_attention_heads
    width = vision.hidden_size
    yield (
        bool(width % heads),
        f"{at}num_attention_heads is {heads}; it must divide {at}hidden_size={width}.",
    )
    layers = vision.num_hidden_layers
    for index in vision.feature_layers:
        yield (
            not -layers <= index < layers,
            f"{at}feature_layers has {index}; it must be from {-layers} to {layers - 1}, one of the {layers} layers.",
        )
    places = vision.num_positions
    yield (
        places is not None and round(places**0.5) ** 2 != places,
        f"{at}num_positions is {places}; it must be a square number, the patches of a square crop.",
    )


def _images(images: ImageConfig, side: int, at: str) -> Rows:
    margins = images.overlap_margins
    yield (
        images.crop_mode != "resize" and sum(margins) >= side,
        f"{at}overlap_margins is {list(margins)}; the two must sum to less than {side}, the patches along a crop's "
        "side, of which they leave nothing.",
    )


def run(config: RunConfig) -> Rows:
    """A run, its architecture included."""
    yield from model(config.model)
    whole = config.global_batch
    micro = config.micro_batch
    yield bool(whole % micro), f"micro_batch is {micro}; it must divide global_batch={whole}."
    yield from _budgets(config)
    yield from _schedule(config)
    yield from rates(config.data.sources, config.data.group_rates, "data.")
    yield from _sources(config, config.data.sources, "data.sources")
    yield from _evaluators(config)


def _budgets(config: RunConfig) -> Rows:
    images = config.model.images
    overlapping = images.crop_mode != "resize"
    crops = 1 + images.max_crops if overlapping else 1
    budget = config.data.crops_per_sequence
    yield (
        budget < crops,
        f"data.crops_per_sequence is {budget}; it must be {crops} or more, the crops of one picture, or lower "
        f"model.images.max_crops={images.max_crops}.",
    )
    most = 1 + images.high_res_max_crops
    yield (
        images.p_high_res > 0 and overlapping and budget < most,
        f"data.crops_per_sequence is {budget}; with model.images.p_high_res it must be {most} or more, or lower "
        f"model.images.high_res_max_crops={images.high_res_max_crops}.",
    )
    side = -(
        -(config.model.vision.image_size // config.model.vision.patch_size)
        // config.model.connector.pooling_size
    )
    view = side * (side + images.use_col_tokens) + 2
    tokens = 2 * view if overlapping else view
    length = config.data.sequence_length
    yield (
        length <= tokens,
        f"data.sequence_length is {length}; it must be above {tokens}, the image tokens of the smallest picture.",
    )


def _sources(config: RunConfig, sources: dict[str, SourceConfig], at: str) -> Rows:
    budget = config.data.crops_per_sequence
    overlapping = config.model.images.crop_mode != "resize"
    for name, source in sources.items():
        crops = source.max_crops
        yield (
            crops is not None and overlapping and crops >= budget,
            f"{at}.{name}.max_crops is {crops}; it must be below data.crops_per_sequence={budget}, which holds a "
            "picture's crops and its global view.",
        )


def _schedule(config: RunConfig) -> Rows:
    optim = config.optim
    frozen = [getattr(optim, name).freeze for name in COMPONENTS]
    yield (
        all(frozen),
        "optim.connector.freeze, optim.vision.freeze and optim.text.freeze leave nothing to learn.",
    )
    still = [name for name in config.lora.components if getattr(optim, name).freeze]
    yield (
        bool(still),
        f"lora.components names {', '.join(still)}, which freeze keeps from learning, adapters too; leave out"
        f" {' and '.join(f'optim.{name}.freeze' for name in still)}.",
    )
    if config.epochs is not None:  # asked again once the steps are known
        return
    end = optim.t_max or config.max_steps
    key = "optim.t_max" if optim.t_max else "max_steps"
    for name in COMPONENTS:
        part: ComponentConfig = getattr(optim, name)
        yield (
            _asked_for(config, name) and not part.freeze and part.warmup_steps > end,
            f"optim.{name}.warmup_steps is {part.warmup_steps}; it must be at most {key}={end}, or the rate never "
            "reaches its peak (stop_after ends a run early without changing its schedule).",
        )
    last = config.stop_after
    yield (
        last is not None and last > config.max_steps,
        f"stop_after is {last}; it must be at most max_steps={config.max_steps}, where the run ends anyway.",
    )
    late = [step for step in config.profile_steps if step > config.max_steps]
    yield (
        bool(late),
        f"profile_steps has {late[:1]}; it must hold steps up to max_steps={config.max_steps}.",
    )


def _evaluators(config: RunConfig) -> Rows:
    silence = config.timeout_seconds
    for name, one in config.evaluators.items():
        at = f"evaluators.{name}"
        yield (
            sum(map(bool, (one.path, one.sources, one.task))) != 1,
            f"{at} needs one of path and sources (shards whose loss is taken) and task (questions that are answered).",
        )
        yield (
            bool(one.task) and one.prompts is not None,
            f"{at}.prompts belongs to a loss; the prompts of a task are those of the benchmark, leave it out.",
        )
        yield from _sources(config, one.sources, f"{at}.sources")
        yield (
            one.interval is None and not one.at_end,
            f"{at} never runs: {at}.interval is null and {at}.at_end is false; set one of them.",
        )
        yield (
            one.max_seconds is not None and one.max_seconds >= silence,
            f"{at}.max_seconds is {one.max_seconds}; it must be below timeout_seconds={silence}, after which ranks "
            "that wait end the run.",
        )


def _asked_for(config: RunConfig, name: str) -> bool:
    """Whether the warm-up of a component was chosen: the default suits the default max_steps only."""
    default: ComponentConfig = getattr(type(config.optim)(), name)
    return getattr(config.optim, name).warmup_steps != default.warmup_steps


def short_warmups(config: RunConfig) -> list[str]:
    """A sentence where a short run does not finish the default warm-up: legal, and worth a word."""
    end = config.optim.t_max or config.max_steps
    parts = {name: getattr(config.optim, name) for name in COMPONENTS}
    late = {
        name: part for name, part in parts.items() if part.warmup_steps > end and not part.freeze
    }
    if not late:
        return []
    keys = ", ".join(
        f"optim.{name}.warmup_steps={part.warmup_steps}" for name, part in late.items()
    )
    return [f"The rate never reaches its peak: {keys} and only {end} steps; set shorter warm-ups."]


def rates(sources: dict[str, SourceConfig], group_rates: dict[str, float], at: str) -> Rows:
    """The rates of a mixture: all sources of a group have one or none, and something is drawn."""
    groups = sorted({source.group for source in sources.values()})
    yield (
        bool(sources) and bool(group_rates) and set(group_rates) != set(groups),
        f"{at}group_rates names {sorted(group_rates)}, but the sources' groups are {groups}.",
    )
    yield (
        bool(group_rates) and not sum(group_rates.values()) > 0,
        f"{at}group_rates are all 0; give one group a rate above 0.",
    )
    for group in groups:
        members = sorted(name for name, source in sources.items() if source.group == group)
        given = [sources[name].rate for name in members if sources[name].rate is not None]
        for name in members:
            source = sources[name]
            yield (
                source.rate is not None and (source.size is not None or source.sampling_rate != 1),
                f"{at}sources.{name} has a rate, so size and sampling_rate mean nothing; leave them out.",
            )
        yield (
            bool(given) and len(given) < len(members),
            f"Either all sources of group '{group}' have a rate or none: {', '.join(members)}.",
        )
        yield (
            bool(given) and not sum(given) > 0,
            f"The rates of group '{group}' must be at least 0, and one above 0.",
        )


def training(config: RunConfig) -> Rows:
    """Settings that a run must be given and other uses of a configuration need not."""
    yield (
        config.model.selection is not None and config.data.packing in ("pack", "knapsack"),
        f"HeMolmo trains on one sample a row; set data.packing=to_max or to_128, not {config.data.packing}.",
    )
    yield not config.out, "out is empty; give the run a folder, for example out=runs/first."
    yield (
        config.out.startswith(("http://", "https://", "hf://")),
        f"out={config.out} can be read only; give a folder, or s3://, gs://, weka:// or r2://.",
    )
    yield (
        not config.data.tokenizer,
        "data.tokenizer is empty; give the folder of a transformers tokenizer.",
    )
    yield not config.data.sources, "There is no data set; give data.sources.<name>.path."
    for name, source in config.data.sources.items():
        yield (
            not source.path,
            f"data.sources.{name}.path is empty; give a folder, URL or glob of shards.",
        )
