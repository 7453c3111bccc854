"""MobileVLM: where vision, projector and decoder meet.

picture  -> inputs.image -> pixels (3, 336, 336)
         -> vision       -> features (576, V)
         -> projector    -> image tokens (144, D) ------------+
question -> inputs.conversation, inputs.tokenizer -> ids      |
         -> embed_tokens, image tokens in the picture's place <
         -> decoder -> logits -> generation -> text
"""

import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from mvlm_np import projector, vision
from mvlm_np.answer import Answer, ends_answer
from mvlm_np.config import Config
from mvlm_np.decoder import DecoderWeights
from mvlm_np.errors import PromptError
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import render, stop_string
from mvlm_np.inputs.image import open_image, preprocess
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer, tokenize_prompt
from mvlm_np.projector import Projector
from mvlm_np.session import Session
from mvlm_np.trace import Recorder, Watch
from mvlm_np.vision import VisionWeights

Image = Any  # a path, a PIL image, or a uint8 array (H, W, 3)
Images = Any  # an image, a list of them, or None
History = Sequence[tuple[str, str]]  # earlier questions and their answers


class MobileVLM:
    """A loaded model. Nothing in it changes after loading, so threads may share it.

    Wherever `**settings` stands, they are those of `generation.Settings`: max_new_tokens=512,
    temperature=0.0, top_p=None, top_k=50, num_beams=1, seed=None. `notes` is what a user should know about
    where the weights came from, a line each. `cache` is the type of the key-value cache, and `give_back` is
    called when pictures have been encoded, so that their weights need not stay in memory.
    """

    def __init__(
        self,
        config: Config,
        vision: VisionWeights | None,
        projector: Projector | None,
        decoder: DecoderWeights,
        ops: ModuleType | SimpleNamespace,
        open_tokenizer: Callable[[], Tokenizer],
        notes: Sequence[str] = (),
        cache: str = "float32",
        give_back: Callable[[], object] = lambda: None,
    ):
        self.config, self.vision, self.projector, self.decoder, self.ops = (
            config,
            vision,
            projector,
            decoder,
            ops,
        )
        self._open_tokenizer, self.notes = open_tokenizer, list(notes)
        self._cache, self._give_back = cache, give_back

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. TokenizerError: there is none; `generate` works all the same."""
        return self._open_tokenizer()

    # ------------------------------------------------------------ questions and answers

    def ask(self, image: Images, question: str, **options: Any) -> str:
        """The answer to a question about a picture, several (a list), or none (None).

        options: those of `Chat`, and the settings of generation.
        """
        return "".join(self.stream(image, question, **options))

    def stream(
        self,
        image: Images,
        question: str,
        *,
        conv_mode: str = "v1",
        history: History | None = None,
        exif: bool = True,
        watch: Watch | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """The same answer in pieces, as they become certain: whole characters, and never a stop string."""
        return Chat(self, image, conv_mode, history, exif, watch).stream(question, **settings)

    def chat(self, image: Images = None, **options: Any) -> "Chat":
        """A conversation of several turns; options as for `Chat`."""
        return Chat(self, image, **options)

    def generate(self, ids: Sequence[int], image: Images = None, **settings: Any) -> list[int]:
        """The ids that follow these, up to the end of sequence or the limit; -200 stands for a picture."""
        eos = self.config.decoder.eos_token_id
        images, watch = self.encode_images(image), Watch()
        x, keys = self.embed(ids, images)
        checked = self.within_context(len(keys), Settings(**settings))
        session = self.session()
        logits = session.read(x, keys, checked.max_new_tokens, watch)
        return list(session.generate(logits, checked, lambda new: new[-1] == eos, len(ids), watch))

    def session(self) -> Session:
        """A decoder that has read nothing yet."""
        return Session(self.decoder, self.config.decoder, self.ops, self._cache)

    # ------------------------------------------------------------ the decoder's input

    def encode_image(self, image: Image, exif: bool = True, watch: Watch | None = None) -> np.ndarray:
        """A picture as tokens for the decoder: float32 (144, D) with the LDP projectors.

        exif: turn a photo as its camera noted. Raises ImageError if the picture cannot be read.
        """
        config, watch = self.config, watch or Watch()
        if self.vision is None or self.projector is None or config.vision is None:
            raise PromptError(
                "image", "this model reads text only", "None", "load a MobileVLM checkpoint for pictures"
            )
        with watch.phase("preprocess"):
            pixels = preprocess(open_image(image, exif=exif), config.image)
        watch("pixel_values", pixels)
        last = config.vision.num_hidden_layers if watch.everything else config.vision_layers
        with watch.phase("encode", last + 1):
            states = vision.hidden_states(pixels, self.vision, config.vision, self.ops)
            for i, state in zip(range(last + 1), states, strict=False):
                watch(f"vision.hidden_states.{i}", state)
                if i == config.vision_layers:
                    features = state[1:] if config.mm_vision_select_feature == "patch" else state
        watch("vision.features", features)
        with watch.phase("project"):
            return projector.project(features, self.projector, self.ops, watch.within("projector"))

    def encode_images(
        self, images: Images, exif: bool = True, watch: Watch | None = None
    ) -> list[np.ndarray]:
        """Each picture's tokens, for an image, a list of them, or None."""
        if images is None:
            return []
        many = images if isinstance(images, list | tuple) else [images]
        encoded = [self.encode_image(image, exif, watch) for image in many]
        self._give_back()
        return encoded

    def embed(self, ids: Sequence[int], images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Prompt ids and image tokens -> the decoder's input (T, D), and what stands at each position (T,).

        An id of -200 stands for one picture, in order. A position holds an id, or -i for the i-th picture.
        """
        array, vocabulary = np.asarray(ids), self.config.decoder.vocab_size
        if array.ndim != 1 or array.dtype.kind != "i" or not array.size:
            raise PromptError("ids", f"are not a list of whole numbers but {reprlib.repr(ids)}")
        is_image = array == IMAGE_TOKEN
        outside = array[~is_image & ((array < 0) | (array >= vocabulary))]
        if outside.size:
            raise PromptError(
                "ids", f"found {outside[0]}", f"0 to {vocabulary - 1}, or {IMAGE_TOKEN} for a picture"
            )
        if is_image.sum() != len(images):
            raise PromptError(
                "ids", f"have places for {is_image.sum()} pictures", f"one for each of the {len(images)}"
            )
        lengths = np.ones(len(array), np.int64)
        lengths[is_image] = [len(image) for image in images]
        keys = np.repeat(np.where(is_image, -np.cumsum(is_image), array), lengths)  # (T,)
        x = self.decoder.embed_tokens(np.maximum(keys, 0))  # (T, D)
        if images:
            x[keys < 0] = np.concatenate(images)
        return x, keys

    def within_context(self, T: int, settings: Settings) -> Settings:
        """The settings with max_new_tokens cut to what fits behind a prompt of T positions."""
        room = self.config.decoder.max_position_embeddings - T
        if room < min(1, settings.max_new_tokens):
            raise PromptError(
                "prompt",
                f"takes {T} positions, its pictures included",
                f"fewer than the model's {self.config.decoder.max_position_embeddings}",
                "shorten the question or the history",
            )
        return replace(settings, max_new_tokens=min(settings.max_new_tokens, room))

    # ------------------------------------------------------------ every stage

    def trace(
        self,
        image: Images,
        question: str,
        max_new_tokens: int = 24,
        num_beams: int | None = None,
        conv_mode: str = "v1",
        exif: bool = False,
        follow: Sequence[int] | None = None,
        recorder: Callable[[], Recorder] = Recorder,
    ) -> dict[str, np.ndarray]:
        """Every stage of one question, under the goldens' names and with their leading batch axis of 1.

        `generated_ids` is greedy; with num_beams=n there is `generated_ids_beam{n}` too. `decode.*` has a
        row for each generated id, fed back through the cache one at a time; `follow` names the ids to
        feed in place of this model's own. Of several pictures, the last one's stages are kept. A photo
        is not turned by its EXIF note unless `exif` says so: the published code does not turn it.
        `recorder` makes the recorder of the prompt's stages, and that of each generated token's.
        """
        watch, decoder = recorder(), self.config.decoder
        images = self.encode_images(image, exif, watch)
        ids = tokenize_prompt(render(conv_mode, question, len(images)), self.tokenizer)
        watch("input_ids", np.array(ids, np.int64))
        x, keys = self.embed(ids, images)
        watch("inputs_embeds", x)
        settings = self.within_context(len(keys), Settings(max_new_tokens))
        session = self.session()
        session.read(x, keys, settings.max_new_tokens, watch, chunk=len(x))
        hidden = watch.arrays[f"decoder.hidden_states.{decoder.num_hidden_layers}"]
        watch("logits", logits := self.decoder.lm_head(hidden))

        stop = ends_answer(self.tokenizer, stop_string(conv_mode), decoder.eos_token_id)
        for beams, name in ((1, "generated_ids"), (num_beams, f"generated_ids_beam{num_beams}")):
            if beams is not None:
                chosen = replace(settings, num_beams=beams)
                session.cache.length = len(keys)
                new = list(session.generate(logits[-1], chosen, stop, len(ids), Watch()))
                watch(name, np.array(new, np.int64))

        fed = watch.arrays["generated_ids"] if follow is None else np.asarray(follow)
        decode = {
            "decode.logits": np.empty((len(fed), decoder.vocab_size), logits.dtype),
            "decode.hidden_states.1": np.empty((len(fed), decoder.hidden_size), logits.dtype),
        }
        session.cache.length = len(keys)
        for i in range(len(fed)):
            step = recorder()
            h = session.forward(self.decoder.embed_tokens(fed[i : i + 1]), step)
            decode["decode.logits"][i] = self.decoder.lm_head(h)[0]
            decode["decode.hidden_states.1"][i] = step.arrays["decoder.hidden_states.1"][0]
        return {name: array[None] for name, array in (watch.arrays | decode).items()}


class Chat:
    """A conversation about the same pictures, which are encoded once; what has been read stays in the cache.

    conv_mode  the prompt template
    history    (question, answer) pairs, grown by each turn
    exif       turn photos as their camera noted
    """

    def __init__(
        self,
        model: MobileVLM,
        image: Images = None,
        conv_mode: str = "v1",
        history: History | None = None,
        exif: bool = True,
        watch: Watch | None = None,
    ):
        self.model, self.conv_mode, self.watch = model, conv_mode, watch or Watch()
        self.history = list(history or [])
        self._stop = stop_string(conv_mode)
        self._ended = ends_answer(model.tokenizer, self._stop, model.config.decoder.eos_token_id)
        self.images = model.encode_images(image, exif, self.watch)
        self.session = model.session()
        self.prompt_ids: list[int] = []  # of the last turn, -200 for each picture
        self.answer_ids: list[int] = []  # of the last turn

    def ask(self, question: str, **settings: Any) -> str:
        """The answer to the next question."""
        return "".join(self.stream(question, **settings))

    def stream(self, question: str, **settings: Any) -> Iterator[str]:
        """The answer in pieces. The turn becomes part of the history when the last piece has been taken."""
        checked = Settings(**settings)
        prompt = render(self.conv_mode, question, len(self.images), self.history)
        self.prompt_ids, self.answer_ids = tokenize_prompt(prompt, self.model.tokenizer), []
        x, keys = self.model.embed(self.prompt_ids, self.images)
        return self._reply(question, x, keys, self.model.within_context(len(keys), checked))

    def _reply(self, question: str, x: np.ndarray, keys: np.ndarray, settings: Settings) -> Iterator[str]:
        answer = Answer(self.model.tokenizer, self._stop)
        logits = self.session.read(x, keys, settings.max_new_tokens, self.watch)
        for token in self.session.generate(logits, settings, self._ended, len(self.prompt_ids), self.watch):
            self.answer_ids.append(token)
            if piece := answer.push(token):
                yield piece
        if piece := answer.finish():
            yield piece
        self.history.append((question, answer.text))
