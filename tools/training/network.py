"""The model in torch, as it is trained: a frozen CLIP tower, a projector, and a LLaMA that reads its tokens.

Tower and decoder are the modules of transformers, the projectors those of `torch_projectors`. Files are
opened by mvlm_np's own readers: whatever folder `mvlm ask` takes can be trained, and a fault in one is
said in the same words. How a picture takes its place among the words, and what the loss counts, are the
published code's rules, see `docs/training-as-published.md`.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from mvlm_np.binder import VISION_TOWER
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.config_files import image_config, model_config, vision_config
from mvlm_np.checkpoints.folder import find_tower, tower_weights
from mvlm_np.checkpoints.json_files import read_json
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.tensors import Tensor as Stored
from mvlm_np.config import Config
from mvlm_np.errors import CheckpointError
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN
from mvlm_np.loading import bound_tensors
from tools.parts.torch_projectors import build_projector
from tools.parts.torch_reference import PROJECTOR, llama_config
from tools.training.batch import Batch, splice
from tools.training.wording import IGNORED

CLIP = f"{VISION_TOWER}vision_model."
FLOATS = ("float32", "bfloat16", "float16", "float64")


class Trainee(nn.Module):
    """A MobileVLM that learns.

    checkpoint    where its weights came from; settings, tokenizer and all that is not trained are there
    tower         CLIP's, never trained
    projector     features (B, patches, V) -> tokens (B, N, D)
    decoder       a LlamaForCausalLM, or PEFT's around it
    as_published  whether also what the published code gets wrong is done
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tower: Any,
        projector: nn.Module,
        decoder: Any,
        as_published: bool = False,
    ):
        super().__init__()
        self.checkpoint, self.as_published = checkpoint, as_published
        self.tower, self.projector, self.decoder = tower.requires_grad_(False), projector, decoder

    @property
    def config(self) -> Config:
        return self.checkpoint.config

    @property
    def llama(self) -> Any:
        """The decoder without PEFT's wrapping; its linear layers may still carry an adapter."""
        return self.decoder.get_base_model() if hasattr(self.decoder, "get_base_model") else self.decoder

    def train(self, mode: bool = True) -> "Trainee":
        super().train(mode)
        self.tower.eval()
        return self

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters under the names that they have in upstream's training, in its order."""
        outer = "base_model.model." * (self.decoder is not self.llama)
        decoder = [(n.replace(".base_layer.", "."), p) for n, p in self.decoder.named_parameters()]
        last = [entry for entry in decoder if entry[0].startswith(f"{outer}lm_head.")]
        yield from (entry for entry in decoder if entry not in last)
        for part, prefix in ((self.tower, CLIP), (self.projector, PROJECTOR)):
            yield from ((f"{outer}{prefix}{name}", p) for name, p in part.named_parameters())
        yield from last

    # ------------------------------------------------------------ what is learned

    def forward(self, batch: Batch, count: int | Tensor | None = None) -> Tensor:
        """The loss: cross entropy, its mean over the learned tokens.

        count  divide the sum by this instead, for a batch that is one part of a larger one

        A batch in which nothing is learned has the loss 0; as published, NaN. Both have gradients of 0.
        Logits are computed only where something is learned, and raised to float32; as published they
        stay what the weights are.
        """
        x, labels, mask = self.splice(batch)
        hidden = self.llama.model(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state
        learned = labels[:, 1:] != IGNORED
        logits, wanted = self.llama.lm_head(hidden[:, :-1][learned]), labels[:, 1:][learned]
        if not self.as_published and logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        total = nn.functional.cross_entropy(logits, wanted, reduction="sum")
        if count is None:
            count = len(wanted) if self.as_published else max(1, len(wanted))
        return total / count

    def splice(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, T', D), labels (B, T') and mask (B, T') of a batch, its pictures among the words."""
        pictured = (batch.ids == IMAGE_TOKEN).any(dim=1)
        pictures = self.image_tokens(batch.pixels, pictured)  # (pictures, N, D)
        batch = splice(batch, pictures.shape[1])
        words = self.llama.model.embed_tokens(batch.ids.clamp(min=0))
        places = (batch.ids == IMAGE_TOKEN)[:, :, None]
        return words.masked_scatter(places, pictures.to(words.dtype)), batch.labels, batch.mask

    def image_tokens(self, pixels: Tensor | None, pictured: Tensor) -> Tensor:
        """The projector's tokens (pictures, N, D) for the rows of a batch that have a picture.

        pixels    of every row, (B, 3, h, w), or their features (B, patches, V)
        pictured  (B,), which rows have one

        If none has, none; but the projector still gets gradients, of 0, as in the published code: other
        processes, whose batches have pictures, wait for them.
        """
        if pixels is None:
            assert not pictured.any(), "a picture's place without a picture"
            nothing = sum(p.sum() for p in self.projector.parameters())
            return nothing * torch.zeros(0, 1, self.config.decoder.hidden_size, device=pictured.device)
        rows = pictured if pictured.any() else torch.arange(len(pictured), device=pictured.device) < 1
        seen = self.features(pixels[rows]) if pixels.ndim == 4 else pixels[rows]
        tokens = self.projector(seen.to(next(self.projector.parameters()).dtype))
        return tokens if pictured.any() else tokens[:0]

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Pixel values (B, 3, h, w) -> what the projector reads, (B, patches, V), in the tower's type.

        No layer behind `mm_vision_select_layer` is run.
        """
        x = self.tower.pre_layrnorm(self.tower.embeddings(pixels.to(self.tower.dtype)))
        for layer in self.tower.encoder.layers[: self.config.vision_layers]:
            x = layer(x, attention_mask=None)
        return x if self.config.mm_vision_select_feature == "cls_patch" else x[:, 1:]

    # ------------------------------------------------------------ what it has learned

    @torch.no_grad()
    def answer(
        self,
        questions: Sequence[Sequence[int]],
        pixels: Tensor | None,
        most: int,
        end: Collection[int] | None = None,
    ) -> list[list[int]]:
        """Greedy answers, as ids, to questions about pictures, all at once.

        questions  ids with an IMAGE_TOKEN each, or none
        pixels     (B, 3, h, w), or features (B, patches, V); None: no question has a picture
        most       tokens of an answer
        end        ids that end one and are not part of it; None: those of the model
        """
        ends = [*(self.config.decoder.end_tokens if end is None else end)]
        device = next(self.projector.parameters()).device
        rows = [
            self.prompt(ids, None if pixels is None else pixels[i], device) for i, ids in enumerate(questions)
        ]
        longest = max(map(len, rows))
        x = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        lengths = torch.tensor([*map(len, rows)], device=device)
        mask = torch.arange(longest, device=device) >= longest - lengths[:, None]
        was_training = self.training
        self.eval()
        try:
            out = self.llama.generate(
                inputs_embeds=x,
                attention_mask=mask,
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
        finally:
            self.train(was_training)
        found = []
        for tokens in out.tolist():
            stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
            found.append(tokens[:stop])
        return found

    def prompt(self, ids: Sequence[int], pixels: Tensor | None, device: torch.device) -> Tensor:
        """The embeddings (T', D) of one question."""
        row = torch.tensor([[*ids]], device=device)
        picture = None if pixels is None else pixels[None].to(device)
        x, _, _ = self.splice(
            Batch(row, torch.full_like(row, IGNORED), torch.ones_like(row, dtype=torch.bool), picture)
        )
        return x[0]

    def checkpoint_activations(self) -> None:
        """Gradient checkpointing: a layer's activations are computed once more instead of kept."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers 5.0, too, knows this name
            self.llama.gradient_checkpointing_enable({"use_reentrant": False})


# ---------------------------------------------------------------- from files


def load(
    folder: str | Path,
    *,
    as_published: bool = False,
    vision_tower: str | Path | None = None,
    projector: str | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 42,
) -> Trainee:
    """Any MobileVLM, ready to be trained.

    vision_tower  the CLIP folder, where it is not where the config says
    as_published  take CLIP's weights from that folder, whatever the checkpoint holds, as the published
                  training does; by default they come from where they do when the model answers
    projector     a `mm_projector_type`: `folder` is a language model, which gets a new projector of this
                  kind, initialised by torch from `seed`, and the tower of `vision_tower`
    dtype         of all weights
    attention     transformers' name of how attention is computed

    UserError: files are missing, damaged or do not fit each other, or weights are rounded to a few bits.
    """
    checkpoint = open_for_training(folder, as_published, vision_tower, projector)
    config = checkpoint.config
    assert config.vision is not None
    tensors = dict(bound_tensors(checkpoint)) if projector is None else dict(checkpoint.tensors)
    refuse_rounded(checkpoint, tensors)
    settings = llama_config(asdict(config.decoder))
    settings.tie_word_embeddings = config.decoder.tie_word_embeddings
    settings.pad_token_id = padding(checkpoint)
    settings._attn_implementation = attention
    vision = CLIPVisionConfig(**asdict(config.vision))
    vision._attn_implementation = attention
    with init_empty_weights():
        decoder, tower = LlamaForCausalLM(settings), CLIPVisionModel(vision)
    decoder.tie_weights()  # so that it has the embeddings alone, if they give the logits, too
    torch.manual_seed(seed)
    mapper = build_projector(config.mm_projector_type, vision.hidden_size, settings.hidden_size)
    take(tower, CLIP, tensors, dtype)
    take(decoder, "", tensors, dtype)
    if projector is None:
        take(mapper, PROJECTOR, tensors, dtype)
    return Trainee(checkpoint, tower, mapper.to(dtype), decoder, as_published)


def open_for_training(
    folder: str | Path, as_published: bool, vision_tower: str | Path | None, projector: str | None
) -> Checkpoint:
    """The checkpoint with the tower that training looks through, unread; a language model gets one."""
    tower = None if vision_tower is None else Path(vision_tower)
    if projector is None:
        checkpoint = open_checkpoint(folder, vision_tower)
        if checkpoint.config.vision is None:
            raise CheckpointError(
                folder,
                "reads text only",
                "a MobileVLM, or with a language model also vision_tower and the projector's kind",
            )
        if not as_published:
            return checkpoint
        named = checkpoint.config.mm_vision_tower
        tower = tower or find_tower(checkpoint.path, named)
        if tower is None:
            found = f"{named} is not here, and the published training takes CLIP from nowhere else"
            raise CheckpointError(
                f"{folder}: mm_vision_tower", found, "its folder", "name it as vision_tower"
            )
        return with_tower(checkpoint, checkpoint.config, tower)
    checkpoint = open_checkpoint(folder)
    if checkpoint.config.vision is not None:
        found = f"has a projector already, a {checkpoint.config.mm_projector_type}"
        raise CheckpointError(folder, found, "a language model", "leave the projector's kind out")
    if tower is None:
        raise CheckpointError(
            folder, "is a language model", "the folder of a CLIP model", "name vision_tower"
        )
    vision_file, image_file = tower / "config.json", tower / "preprocessor_config.json"
    where = checkpoint.path / "config.json"
    config = model_config(
        read_json(where) | {"mm_vision_tower": str(tower), "mm_projector_type": projector},
        where,
        vision_config(read_json(vision_file), vision_file),
        image_config(read_json(image_file), "pad", image_file),
    )
    config = replace(config, decoder=checkpoint.config.decoder)
    return with_tower(checkpoint, config, tower)


def with_tower(checkpoint: Checkpoint, config: Config, tower: Path) -> Checkpoint:
    others = {name: t for name, t in checkpoint.tensors.items() if not name.startswith(VISION_TOWER)}
    return replace(checkpoint, config=config, tensors=others | tower_weights(tower))


def refuse_rounded(checkpoint: Checkpoint, tensors: Mapping[str, Stored]) -> None:
    """CheckpointError: a weight is not a floating-point number, and so cannot be moved a little."""
    for name, tensor in tensors.items():
        if tensor.decode is not None or tensor.dtype not in FLOATS:
            fix = "train the model from which this one was made, and convert the result"
            raise CheckpointError(
                f"{checkpoint.path}: {name}",
                f"is kept in {tensor.dtype}",
                "weights as they were trained",
                fix,
            )


def padding(checkpoint: Checkpoint) -> int | None:
    """`pad_token_id` of config.json, whose row of the embeddings transformers does not train."""
    where = checkpoint.path / "config.json"
    found = read_json(where).get("pad_token_id") if where.is_file() else None
    return found if isinstance(found, int) and 0 <= found < checkpoint.config.decoder.vocab_size else None


def take(module: nn.Module, prefix: str, tensors: Mapping[str, Stored], dtype: torch.dtype) -> None:
    """Gives a module its weights, of which each is read once; what no output depends on may be missing."""
    state = {}
    for name, parameter in module.named_parameters():
        stored = tensors.get(prefix + name)
        if stored is None:
            assert "post_layernorm" in name, f"{prefix}{name} is missing"
            state[name] = torch.zeros(parameter.shape, dtype=dtype)
        else:
            state[name] = to_torch(stored, dtype)
    module.load_state_dict(state, strict=False, assign=True)
    if hasattr(module, "tie_weights"):
        module.tie_weights()


def to_torch(stored: Stored, dtype: torch.dtype) -> Tensor:
    """The values in memory of their own."""
    values = torch.tensor(np.ascontiguousarray(stored.stored()))
    if stored.dtype == "bfloat16":
        values = values.view(torch.bfloat16)
    stored.forget()
    return values.to(dtype)
