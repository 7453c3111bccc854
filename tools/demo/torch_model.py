"""The model's answers as transformers' own modules give them, in float32, to compare ours with."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, tokenize_prompt
from tools.parts.torch_projectors import build_projector
from tools.parts.torch_reference import (
    PROJECTOR,
    TOWER,
    Reference,
    llama_config,
    pixel_values,
    pretrained,
    read_json,
)


class TorchModel:
    """Greedy answers to single questions, through that part of `MobileVLM`'s interface which we need."""

    def __init__(self, folder: Path):
        self.files = Reference(folder)
        config = self.files.config
        assert self.files.tower is not None
        self.preprocessor = read_json(self.files.tower / "preprocessor_config.json")
        vision = CLIPVisionConfig(**read_json(self.files.tower / "config.json"))
        self.tower = pretrained(CLIPVisionModel, vision, self.files.state(TOWER))
        self.projector = build_projector(
            config["mm_projector_type"], vision.hidden_size, config["hidden_size"]
        )
        self.projector.load_state_dict(self.files.state(PROJECTOR))
        self.decoder = pretrained(LlamaForCausalLM, llama_config(config), self.files.state(""))

    def chat(self, image: Image.Image) -> "TorchChat":
        return TorchChat(self, image)


class TorchChat:
    def __init__(self, model: TorchModel, image: Image.Image):
        self.model = model
        self.history: list[Any] = []
        pad = model.files.config["image_aspect_ratio"] == "pad"
        pixels = torch.from_numpy(pixel_values(image, model.preprocessor, pad))
        with torch.inference_mode():
            states = model.tower(pixels, output_hidden_states=True).hidden_states
            features = states[model.files.config["mm_vision_select_layer"]][:, 1:]
            self.image = model.projector(features)[0]

    @torch.inference_mode()
    def ask(self, question: str, max_new_tokens: int) -> str:
        model = self.model
        ids = tokenize_prompt(render("v1", question), model.files.tokenizer)
        at = ids.index(IMAGE_TOKEN)
        embed = model.decoder.model.embed_tokens
        x = torch.cat([embed(torch.tensor(ids[:at])), self.image, embed(torch.tensor(ids[at + 1 :]))])[None]
        eos = model.files.config["eos_token_id"]
        new = model.decoder.generate(
            inputs_embeds=x, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=0
        )
        return model.files.tokenizer.decode(new[0].tolist()).strip()
