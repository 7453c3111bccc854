"""MobileVLM in torch: what mvlm_np's numbers are compared with.

Vision tower and decoder are the modules of transformers; the projectors are in `torch_projectors`, and the
preparation of the picture is here. Nothing of mvlm_np's forward pass is used. Prompt, tokenizer, stopping
and the search through beams, which have tests of their own, are mvlm_np's.

Everything is float32, and only one of the three parts is in memory at a time.
"""

import gc
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from mvlm_np.answer import Answer, ends_answer
from mvlm_np.cli.progress import bar
from mvlm_np.errors import CheckpointError
from mvlm_np.generation import Settings, generate
from mvlm_np.inputs.conversation import render, stop_string
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer, tokenize_prompt
from tools.parts.torch_projectors import build_projector

TOWER, PROJECTOR = "model.vision_tower.vision_tower.", "model.mm_projector."
OPENAI_TOWER: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
OPENAI_PREPROCESSOR: dict[str, Any] = {
    "size": 336, "crop_size": 336,
    "image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711),
}  # fmt: skip

Arrays = dict[str, np.ndarray]
Stored = dict[str, Callable[[], Tensor]]  # a tensor's name -> what reads it from its file


class Reference:
    """A model folder as torch sees it.

    Each method runs one part and returns its stages under the goldens' names, with a leading batch axis
    of 1. `progress` is called with the name of each step that is about to begin.
    """

    def __init__(self, folder: Path, progress: Callable[[str], object] = lambda step: None):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.progress = progress
        self.config = read_json(folder / "config.json")
        if "mm_vision_tower" not in self.config:
            raise CheckpointError(folder / "config.json", "names no mm_vision_tower", "a MobileVLM's")
        tower = Path(self.config["mm_vision_tower"])
        places = (folder / tower, folder / tower.name, folder.parent / tower.name)
        self.tower = next((place for place in places if place.is_dir()), None)
        self.tensors = read_tensors(folder)
        if "v2" not in self.config["mm_projector_type"]:
            # Upstream throws the checkpoint's copy of the tower away and loads the tower's own folder.
            if self.tower is None:
                raise CheckpointError(folder, f"the vision tower {tower} is not in it and not beside it")
            own = {name: read for name, read in self.tensors.items() if not name.startswith(TOWER)}
            theirs = read_tensors(self.tower)  # perhaps with CLIP's text tower
            self.tensors = own | {TOWER + k: v for k, v in theirs.items() if k.startswith("vision_model.")}
        self.tokenizer = Tokenizer.from_folder(folder)

    # ------------------------------------------------------------ one question

    def run(
        self,
        image: Path,
        question: str,
        max_new_tokens: int = 24,
        num_beams: int = 3,
        beam_tokens: int = 12,
        conv_mode: str = "v1",
    ) -> tuple[Arrays, dict[str, str]]:
        """All stages of a question about a picture, and what was asked and answered."""
        prompt, stop = render(conv_mode, question, 1), stop_string(conv_mode)
        ids = tokenize_prompt(prompt, self.tokenizer)
        arrays = {"pixel_values": self.pixel_values(image), "input_ids": np.array([ids], np.int64)}
        arrays |= self.vision(arrays["pixel_values"])
        arrays |= self.project(arrays["vision.features"])
        arrays |= self.decode(ids, arrays["projector.output"], stop, max_new_tokens, num_beams, beam_tokens)
        answer = Answer(self.tokenizer, stop)
        for token in arrays["generated_ids"][0]:
            answer.push(int(token))
        answer.finish()
        return arrays, {"image": image.name, "question": question, "prompt": prompt, "text": answer.text}

    def pixel_values(self, image: Path) -> np.ndarray:
        settings = read_json(self.tower / "preprocessor_config.json") if self.tower else OPENAI_PREPROCESSOR
        return pixel_values(image, settings, pad=self.config.get("image_aspect_ratio") == "pad")

    @torch.inference_mode()
    def vision(self, pixels: np.ndarray) -> Arrays:
        """Pixel values (1, 3, h, w) -> every hidden state (1, 1 + patches, V), and the features."""
        self.progress("load vision")
        settings = read_json(self.tower / "config.json") if self.tower else OPENAI_TOWER
        config = CLIPVisionConfig(**settings.get("vision_config", settings))
        tower = pretrained(CLIPVisionModel, config, self.state(TOWER))
        self.progress("encode")
        states = tower(torch.tensor(pixels), output_hidden_states=True).hidden_states
        features = states[self.config["mm_vision_select_layer"]]
        if self.config["mm_vision_select_feature"] == "patch":
            features = features[:, 1:]
        named = {f"vision.hidden_states.{i}": state for i, state in enumerate(states)}
        return to_numpy(named | {"vision.features": features})

    @torch.inference_mode()
    def project(self, features: np.ndarray) -> Arrays:
        """Features (1, T, V) -> what every module of the projector gives; the last is `projector.output`."""
        self.progress("project")
        D, V = self.config["hidden_size"], features.shape[-1]
        projector = build_projector(self.config["mm_projector_type"], V, D)
        projector.load_state_dict(self.state(PROJECTOR))
        stages: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, output: stages.update({name: output})

        for name, module in projector.named_modules():
            module.register_forward_hook(keep(name))
        output = projector(torch.tensor(features))

        def tells_more(name: str) -> bool:
            """Than the module around it, whose last step it may be."""
            parent = name.rpartition(".")[0]
            return not parent or not torch.equal(stages[name], stages[parent])

        kept = {f"projector.{name}": stage for name, stage in stages.items() if name and tells_more(name)}
        return to_numpy(kept | {"projector.output": output})

    @torch.inference_mode()
    def decode(
        self,
        ids: list[int],
        image: np.ndarray,
        stop: str,
        max_new_tokens: int = 24,
        num_beams: int = 3,
        beam_tokens: int = 12,
    ) -> Arrays:
        """Prompt ids and image tokens (1, T, D) -> the decoder's stages and the tokens that follow."""
        self.progress("load decoder")
        decoder = pretrained(LlamaForCausalLM, llama_config(self.config), self.state(""))
        at = ids.index(IMAGE_TOKEN)
        before, after = (decoder.model.embed_tokens(torch.tensor(part)) for part in (ids[:at], ids[at + 1 :]))
        embeds = torch.cat([before, torch.tensor(image[0]), after])[None]
        self.progress("prefill")
        out = decoder(inputs_embeds=embeds, use_cache=True, output_hidden_states=True)
        named = {"inputs_embeds": embeds, "logits": out.logits}
        named |= {f"decoder.hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
        for i, layer in enumerate(out.past_key_values.layers):
            named |= {f"decoder.keys.{i}": layer.keys, f"decoder.values.{i}": layer.values}
        arrays, last = to_numpy(named), out.logits[0, -1].numpy()

        ended = ends_answer(self.tokenizer, stop, (eos := self.config["eos_token_id"],))
        greedy = Steps(decoder, out.past_key_values, 1, self.progress)
        new = list(generate(last, greedy, Settings(max_new_tokens), ended, len(ids)))
        greedy.step(np.array(new[-1:]))  # the last one, which generating has not fed back
        arrays["generated_ids"] = np.array([new], np.int64)
        arrays["decode.logits"] = np.concatenate(greedy.logits)[None]
        arrays["decode.hidden_states.1"] = np.concatenate(greedy.hidden)[None]
        if num_beams > 1:
            beams = Steps(decoder, out.past_key_values, num_beams, self.progress)
            settings = Settings(beam_tokens, num_beams=num_beams)
            # Without the stop string, on which the published code fails when it has beams.
            new = list(generate(last, beams, settings, lambda tokens: tokens[-1] == eos, len(ids)))
            arrays[f"generated_ids_beam{num_beams}"] = np.array([new], np.int64)
        return arrays

    def state(self, part: str) -> dict[str, Tensor]:
        """The float32 tensors of the vision tower, the projector, or (part "") the decoder."""
        return {
            name.removeprefix(part): read().float()
            for name, read in self.tensors.items()
            if name.startswith(part or ("model.embed_tokens", "model.layers", "model.norm", "lm_head"))
            and not name.endswith(("inv_freq", "position_ids"))
        }


def run_with_bar(folder: Path, image: Path, question: str, **limits: Any) -> tuple[Arrays, dict[str, str]]:
    """`Reference.run` on a model folder; a progress bar names its steps."""
    with bar("torch", None) as shown:

        def progress(step: str) -> None:
            shown.set_description(f"torch: {step}", refresh=False)
            shown.update()

        return Reference(folder, progress).run(image, question, **limits)


class Steps:
    """A decoder that has read a prompt, as `generation` drives it; keeps what each step gives."""

    def __init__(self, decoder: Any, past: Any, beams: int, progress: Callable[[str], object]):
        self.decoder, self.past, self.progress = decoder, deepcopy(past), progress
        self.past.batch_repeat_interleave(beams)
        self.logits: list[np.ndarray] = []
        self.hidden: list[np.ndarray] = []

    def step(self, tokens: np.ndarray) -> np.ndarray:
        self.progress("decode")
        ids = torch.from_numpy(tokens)[:, None]
        out = self.decoder(input_ids=ids, past_key_values=self.past, output_hidden_states=True)
        self.logits.append(out.logits[:, -1].numpy())
        self.hidden.append(out.hidden_states[1][:, -1].numpy())
        return self.logits[-1]

    def reorder(self, parents: np.ndarray) -> None:
        self.past.reorder_cache(torch.from_numpy(parents))


def pixel_values(path: Path | Image.Image, preprocessor: Mapping[str, Any], pad: bool) -> np.ndarray:
    """A picture -> float32 (1, 3, h, w), as upstream and CLIPImageProcessor prepare it."""

    def side(key: str, name: str) -> int:
        """Files say either 336 or {"shortest_edge": 336} and the like."""
        value = preprocessor[key]
        return value[name] if isinstance(value, Mapping) else value

    size, crop = side("size", "shortest_edge"), side("crop_size", "height")
    mean, std = (np.array(preprocessor[f"image_{key}"], np.float32) for key in ("mean", "std"))
    image = (path if isinstance(path, Image.Image) else Image.open(path)).convert("RGB")
    if pad and image.width != image.height:
        longer = max(image.size)
        colour = tuple(int(255 * m) for m in preprocessor["image_mean"])
        square = Image.new("RGB", (longer, longer), colour)
        square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
        image = square
    shorter = min(image.size)
    resized = (size * image.width // shorter, size * image.height // shorter)
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    pixels = np.array(image.crop((left, top, left + crop, top + crop)))  # (h, w, 3)
    scaled = (pixels * (1 / 255)).astype(np.float32)
    return ((scaled - mean) / std).transpose(2, 0, 1)[None].copy()


def llama_config(values: Mapping[str, Any]) -> LlamaConfig:
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "rms_norm_eps", "max_position_embeddings",
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": values["rope_theta"]}
    return LlamaConfig(**{key: values[key] for key in keys}, rope_parameters=rope)


def pretrained(kind: Any, config: Any, state: dict[str, Tensor]) -> Any:
    """A module of transformers with exactly these weights, its attention computed step by step."""
    gc.collect()  # the part before this one; transformers' modules refer to themselves
    model, info = kind.from_pretrained(
        None, config=config, state_dict=state, attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: names for key, names in info.items() if names}
    if wrong:
        raise CheckpointError(kind.__name__, f"its weights do not fit: {wrong}"[:500])
    return model


def read_tensors(folder: Path) -> Stored:
    """The tensors of a folder's weight files, unread, by Hugging Face's names."""
    found: Stored = {}
    for path in sorted(folder.glob("model*.safetensors")):
        file = safe_open(path, "pt")
        found |= {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118
    if not found:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            weights = torch.load(path, mmap=True, weights_only=True)
            found |= {name: partial(weights.get, name) for name in weights}
    if not found:
        raise CheckpointError(folder, "holds no weights", "model*.safetensors or pytorch_model*.bin")
    return found


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def to_numpy(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
