"""A LoRA adapter, as PEFT saves it, merged onto a base model: W + scaling B A, a matrix at a time.

    adapter_config.json                     what the adapter is, and its scaling
    adapter_model.safetensors | .bin        MODULE.lora_A.weight (r, K) and MODULE.lora_B.weight (N, r)
    non_lora_trainables.safetensors | .bin  tensors that were trained whole, such as the projector's
    config.json                             the model's settings, if upstream's training saved it

As in the published code, tensors that were trained whole first take the places of the base's; then comes
PEFT's `merge_and_unload`. The adapter's keys say which modules it changes, and the shapes of its matrices
at which rank; of the regular expressions that its settings may hold, none is evaluated.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np

from mvlm_np.binder import VISION_TOWER
from mvlm_np.checkpoints import tokenizer_files
from mvlm_np.checkpoints.checkpoint import Checkpoint, StoredTokenizer
from mvlm_np.checkpoints.config_files import is_multimodal, model_config
from mvlm_np.checkpoints.folder import READERS, open_folder
from mvlm_np.checkpoints.json_files import Fields, read_json, short
from mvlm_np.checkpoints.kinds import ADAPTER, adapter_in
from mvlm_np.checkpoints.sniff import show
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.errors import CheckpointError, ConfigError, TokenizerError
from mvlm_np.kernels.pack import KINDS

# Kinds of LoRA for which PEFT computes something else than W + scaling B A, or something more.
VARIANTS = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "layer_replication", "megatron_config", "monteclora_config", "target_parameters",
    "trainable_token_indices", "velora_config",
)  # fmt: skip
INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")  # all others take something off the base first
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")  # the tables with a row for each id
TOKENIZER_FILES = (*tokenizer_files.FILES, tokenizer_files.JSON)
OTHER_BASE = "merge onto the base that the adapter was trained on"

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")
# A module's two matrices, and whether the table that they change is the transpose of B A.
_PAIRS = {("lora_A.weight", "lora_B.weight"): False, ("lora_embedding_A", "lora_embedding_B"): True}


@dataclass(eq=False, repr=False, kw_only=True)
class MergedTensor(Tensor):
    """base + scaling B A, or its transpose, computed in float32 for the rows that are asked for.

    A (r, K), B (N, r); of an embedding, whose table is (V, D), A is (r, V) and B is (D, r)
    """

    base: Tensor
    A: Tensor
    B: Tensor
    transposed: bool
    scaling: float

    @property
    def is_rounded(self) -> bool:
        """Whether the base is kept in a packed kind or a GGUF block type."""
        return self.base.decode is not None or self.base.dtype in KINDS

    def float32(self) -> np.ndarray:
        return self.rows(slice(None))

    def rows(self, ids: np.ndarray | slice) -> np.ndarray:
        left, right = _finite(self.B), _finite(self.A)
        if self.transposed:
            left, right = right.T, left.T
        change = left[ids] @ right
        change *= np.float32(self.scaling)
        change += self.base.rows(ids)
        return change


def merged(
    base: Checkpoint, adapter: Path, vision_tower: Path | None = None, scale: float = 1.0
) -> Checkpoint:
    """The model that `base` becomes with the adapter in the folder `adapter`. Reads no weights.

    vision_tower  the CLIP folder, for an adapter that gives vision to a text-only base; see `open_folder`
    scale         W + scale · scaling B A: less than 1 changes the base less. Tensors that were trained whole
                  are taken as they are

    ConfigError: the adapter is of a kind that cannot be merged here, or its settings are unsound.
    CheckpointError: a tensor is missing, has no place in the base, or does not fit.
    """
    recipe = replace(read_recipe(adapter_in(adapter) / ADAPTER), scale=scale)
    pairs, whole = _sorted(_read(adapter, "adapter_model"))
    if not pairs:
        raise CheckpointError(adapter, "holds no matrices", "MODULE.lora_A.weight and MODULE.lora_B.weight")
    whole = _trained_whole(adapter) | whole
    model = _with_settings(base, adapter, whole, vision_tower)
    tensors, notes = dict(model.tensors), list(model.notes)
    if not model.config.vision_in_checkpoint and any(name.startswith(VISION_TOWER) for name in whole):
        whole = {name: tensor for name, tensor in whole.items() if not name.startswith(VISION_TOWER)}
        notes.append(
            f"vision weights in {adapter} are not used: this model takes CLIP's from their own folder"
        )
    model = _with_vocabulary(model, adapter, whole)
    rows = model.config.decoder.vocab_size
    for name, tensor in whole.items():
        if name not in tensors:
            raise _refusal(tensor, "has no counterpart in the base", fix=OTHER_BASE)
        shape = tensors[name].shape
        _require(tensor, (rows, *shape[1:]) if name in VOCABULARY else shape)
        tensors[name] = tensor
    _require_all(recipe, pairs, tensors)
    for module, pair in pairs.items():
        name = f"{module}.weight"
        tensors[name] = _merge(recipe, module, tensors.get(name), pair)
    by = "" if scale == 1 else f" by {scale:g} of what it says"
    notes.append(
        f"merged with {adapter.name}: {len(pairs)} matrices changed{by}, {len(whole)} tensors replaced"
    )
    return replace(model, tensors=tensors, notes=notes)


# -- Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What an adapter_config.json says about the sums.

    ranks    that matrices may have
    alpha    the numerator of the scaling; `alphas` of single modules, by ends of their names, each with
             its place in the file: the first that fits counts
    root     whether the denominator is the rank's root
    targets  ends of the names of all modules that must have matrices; empty if the file does not list them
    scale    what the caller multiplies all sums with
    """

    where: Path
    ranks: frozenset[int]
    alpha: float
    alphas: Mapping[str, tuple[int, float]]
    root: bool
    targets: frozenset[str]
    scale: float = 1.0

    def scaling(self, module: str, rank: int) -> float:
        fitting = [self.alphas[end] for end in (*ends(module), f"^{module}") if end in self.alphas]
        _, alpha = min(fitting, default=(0, self.alpha))
        return self.scale * alpha / (sqrt(rank) if self.root else rank)


def ends(module: str) -> list[str]:
    """a.b.c -> a.b.c, b.c, c"""
    parts = module.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def read_recipe(where: Path) -> Recipe:
    """ConfigError: it is not plain LoRA, or a setting makes no sense."""
    get = Fields(read_json(where), where)
    kind, values = get.text("peft_type"), get.values
    if kind != "LORA":
        raise ConfigError(f"{where}: peft_type", f"found {short(kind)}", "LORA", "merge it with PEFT")
    for key in VARIANTS:
        if values.get(key):
            raise ConfigError(
                f"{where}: {key}", f"found {short(values[key])}", "plain LoRA", "merge it with PEFT"
            )
    initial = values.get("init_lora_weights")
    if not any(initial is known or initial == known for known in INITIAL):
        raise ConfigError(
            f"{where}: init_lora_weights",
            f"found {short(initial)}, under which training starts by changing the base",
            "an adapter to the unchanged base",
            "save it again with PEFT's path_initial_model_for_weight_conversion",
        )
    ranks, alphas = _pattern(get, "rank_pattern"), _pattern(get, "alpha_pattern")
    for name in alphas.values:
        if not re.fullmatch(r"\^?[\w.]+", name):
            raise ConfigError(f"{alphas.where}: {show(name)}", "is a regular expression", "a module's name")
    listed = values.get("target_modules")
    chosen = any(values.get(key) is not None for key in ("layers_to_transform", "exclude_modules"))
    if not isinstance(listed, list) or chosen:
        listed = []
    return Recipe(
        where,
        frozenset(
            [get.whole("r", most=1 << 16), *(ranks.whole(name, most=1 << 16) for name in ranks.values)]
        ),
        get.number("lora_alpha"),
        {name: (i, alphas.number(name)) for i, name in enumerate(alphas.values)},
        get.flag("use_rslora", False),
        frozenset(end for end in listed if isinstance(end, str)),
    )


def _pattern(get: Fields, key: str) -> Fields:
    return get.inner(key) if get.values.get(key) is not None else Fields({}, get.where)


def _with_settings(
    base: Checkpoint, adapter: Path, whole: Mapping[str, Tensor], vision_tower: Path | None
) -> Checkpoint:
    """The base under the settings that lie beside the adapter. Tokenizer and token ids stay the base's."""
    where = adapter / "config.json"
    if not os.path.lexists(where):
        return base
    get = Fields(read_json(where), where)
    if not is_multimodal(get.values):
        return base
    if base.config.vision is None:
        model = open_folder(adapter, vision_tower, {**base.tensors, **whole})
        ids = {key: getattr(base.config.decoder, key) for key in ("bos_token_id", "eos_token_id")}
        config = replace(model.config, decoder=replace(model.config.decoder, **ids))
        return replace(
            model,
            path=base.path,
            config=config,
            read_tokenizer=base.read_tokenizer,
            notes=base.notes + model.notes,
        )
    image = replace(base.config.image, aspect_ratio=get.text("image_aspect_ratio", "") or None)
    config = model_config(get.values, where, base.config.vision, image)
    keys = ["mm_projector_type", "mm_vision_select_feature"]
    if base.path.is_dir():  # a GGUF counts its layers from another end
        keys.append("mm_vision_select_layer")
    for key in keys:
        found, wanted = getattr(config, key), getattr(base.config, key)
        if found != wanted:
            raise ConfigError(f"{where}: {key}", f"found {found}", f"the base's {wanted}", OTHER_BASE)
    return replace(base, config=replace(base.config, image=image))


def _with_vocabulary(model: Checkpoint, adapter: Path, whole: Mapping[str, Tensor]) -> Checkpoint:
    """The model with as many ids as the adapter's tables of embeddings have rows.

    Training adds tokens so: it resizes both tables, and PEFT saves them whole. The tokenizer's files beside
    the adapter, which name those tokens, then go before the base's.
    """
    tables = [whole[name] for name in VOCABULARY if name in whole]
    if not tables:
        return model
    decoder, rows = model.config.decoder, tables[0].shape[0] if tables[0].shape else 0
    if rows != decoder.vocab_size and len(tables) < 2 and not decoder.tie_word_embeddings:
        raise _refusal(tables[0], f"has {rows} rows", f"{decoder.vocab_size}, or the other table as well")
    config = replace(model.config, decoder=replace(decoder, vocab_size=rows))
    return replace(model, config=config, read_tokenizer=partial(_read_tokenizer, model, adapter))


def _read_tokenizer(base: Checkpoint, adapter: Path) -> StoredTokenizer:
    """The tokenizer beside the adapter; what of its files is not there is the base's."""
    here = [name for name in TOKENIZER_FILES if os.path.lexists(adapter / name)]
    if not here:
        return base.read_tokenizer()
    if tokenizer_files.MODEL in here or tokenizer_files.JSON in here:
        return tokenizer_files.read_folder(adapter)
    of_base = base.read_tokenizer()
    if not of_base.files:
        fix = "copy the base's tokenizer.model into the adapter's folder"
        raise TokenizerError(adapter / here[0], f"adds to the tokenizer inside {base.path}", None, fix)
    return tokenizer_files.read_folder(adapter, *{path.parent for path in of_base.files.values()})


# -- Tensors ------------------------------------------------------------------------------------------


def _read(adapter: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of `stem`.safetensors or `stem`.bin, whichever is there."""
    files = [adapter / f"{stem}{suffix}" for suffix in READERS]
    for file in files:
        if os.path.lexists(file):
            return READERS[file.suffix](file)
    raise CheckpointError(adapter, "holds no adapter", " or ".join(file.name for file in files))


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """{module: {kind: factor}}, and the tensors that were trained whole by their names in the base."""
    pairs: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if factor := _FACTOR.fullmatch(name):
            pairs.setdefault(factor[1], {})[factor[2]] = tensor
        elif name == key or ".lora_" in name:
            raise _refusal(tensor, "is of no known kind", f"{_PREFIX}MODULE.lora_A.weight and its like")
        elif ".original_module." not in name:  # PEFT may save it along, and drops it when merging
            whole[re.sub(r"\.(base_layer|modules_to_save)\.", ".", name)] = tensor
    return pairs, whole


def _trained_whole(adapter: Path) -> dict[str, Tensor]:
    """non_lora_trainables by the names that upstream makes of its keys, if there are any."""
    if not any(os.path.lexists(adapter / f"non_lora_trainables{suffix}") for suffix in READERS):
        return {}
    found = _read(adapter, "non_lora_trainables")
    found = {name.removeprefix("base_model."): tensor for name, tensor in found.items()}
    if any(name.startswith("model.model.") for name in found):
        found = {name.removeprefix("model."): tensor for name, tensor in found.items()}
    return found


def _require_all(recipe: Recipe, pairs: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Each listed module of the decoder has its matrices. (Of the vision tower only some may: its modules
    have the names of the decoder's, and upstream's training leaves them out.)"""
    modules = (
        name.removesuffix(".weight") for name in tensors if name.startswith(("model.layers.", "lm_head."))
    )
    lost = [m for m in modules if m not in pairs and not recipe.targets.isdisjoint(ends(m))]
    if lost:
        found = f"lists {len(lost)} modules that have no matrices, {lost[0]} for one"
        raise CheckpointError(f"{recipe.where}: target_modules", found, "lora_A and lora_B of each")


def _merge(recipe: Recipe, module: str, base: Tensor | None, pair: Mapping[str, Tensor]) -> Tensor:
    """The weight of `module` with its two factors."""
    first = next(iter(pair.values()))
    if base is None or len(base.shape) != 2:
        raise _refusal(first, f"changes {show(module)}", "a matrix of the base", OTHER_BASE)
    kinds = next((kinds for kinds in _PAIRS if set(kinds) == set(pair)), None)
    if kinds is None:
        raise _refusal(first, "is one of a pair of which the other is missing", "lora_A and lora_B")
    A, B = (pair[kind] for kind in kinds)
    rank = A.shape[0] if A.shape else 0
    if rank not in recipe.ranks:
        wanted = ", ".join(map(str, sorted(recipe.ranks)[:6]))
        raise _refusal(A, f"has rank {rank}", f"{wanted}, as {recipe.where.name} says")
    N, K = reversed(base.shape) if _PAIRS[kinds] else base.shape
    _require(A, (rank, K))
    _require(B, (N, rank))
    return MergedTensor(
        base.name, "merged", base.shape, base.file, base.offset, base.raw,
        base=base, A=A, B=B, transposed=_PAIRS[kinds], scaling=recipe.scaling(module, rank),
    )  # fmt: skip


def _require(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise _refusal(tensor, f"is {list(tensor.shape)}", f"{list(shape)} for this base", OTHER_BASE)
    if "float" not in tensor.dtype:
        raise _refusal(tensor, f"is of type {tensor.dtype}", "a floating-point type")


def _finite(tensor: Tensor) -> np.ndarray:
    values = tensor.float32()
    if not np.isfinite(values).all():
        raise _refusal(tensor, "holds NaN or infinity", "finite numbers")
    return values


def _refusal(
    tensor: Tensor, found: str, wanted: str | None = None, fix: str | None = None
) -> CheckpointError:
    return CheckpointError(f"{tensor.file.path}: {show(tensor.name)}", found, wanted, fix)
