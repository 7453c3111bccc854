"""MobileVLM: where vision, projector and decoder meet.

picture  -> inputs.image -> pixels (3, 336, 336)
         -> vision       -> features (576, V)
         -> projector    -> image tokens (144, D) ------------+
question -> inputs.conversation, inputs.tokenizer -> ids      |
         -> embed_tokens, image tokens in the picture's place <
         -> decoder -> logits -> generation -> text

A question goes through all of it in `chat`; `stages` keeps every stage on the way.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mvlm_np import projector, vision
from mvlm_np.backend import Ops
from mvlm_np.chat import Chat
from mvlm_np.config import Config
from mvlm_np.constrained.schema import compile
from mvlm_np.constrained.vocabulary import State, Vocabulary
from mvlm_np.decoder import DecoderWeights
from mvlm_np.drafts import draft_for
from mvlm_np.errors import GenerationError, PromptError
from mvlm_np.generation import NEW_TOKENS, Settings, settings_of
from mvlm_np.inputs.conversation import History
from mvlm_np.inputs.image import Picture, Pictures, as_list, open_image, preprocess
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer
from mvlm_np.projector import Projector
from mvlm_np.prompt_limits import checked_ids, positions, within_context
from mvlm_np.session import Session
from mvlm_np.stages import trace
from mvlm_np.trace import Stages, Watch
from mvlm_np.vision import VisionWeights

if TYPE_CHECKING:
    from mvlm_np.prefix import Prefix
    from mvlm_np.rows.row import Answered, Row


class MobileVLM:
    """A loaded model. Nothing in it changes after loading, so threads may share it.

    Wherever `**settings` stands, they are those of `generation.Settings`: max_new_tokens=512,
    temperature=0.0, top_p=None, top_k=50, num_beams=1, seed=None. `notes` is what a user should know about
    where the weights came from, a line each. `cache` is the type of the key-value cache, and `give_back` is
    called when pictures have been encoded, so that their weights need not stay in memory. `no_vision` says
    what to do about a model that has no vision tower, and `find_prefix` looks for a stored beginning (see
    `prefix`).
    """

    def __init__(
        self,
        config: Config,
        vision: VisionWeights | None,
        projector: Projector | None,
        decoder: DecoderWeights,
        ops: Ops,
        open_tokenizer: Callable[[], Tokenizer],
        notes: Sequence[str] = (),
        cache: str = "float32",
        give_back: Callable[[], object] = lambda: None,
        no_vision: str = "load a MobileVLM checkpoint for pictures",
        find_prefix: "Callable[[], Prefix | None]" = lambda: None,
    ):
        self.config, self.ops, self.notes = config, ops, list(notes)
        self.vision, self.projector, self.decoder = vision, projector, decoder
        self._open_tokenizer, self._cache, self.give_back = open_tokenizer, cache, give_back
        self._no_vision, self._find_prefix = no_vision, find_prefix

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. TokenizerError: there is none; `generate` works all the same."""
        return self._open_tokenizer()

    @cached_property
    def prefix(self) -> "Prefix | None":
        """Keys and values with which a first question may begin, if the model's folder has them."""
        return self._find_prefix()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's pieces, prepared for answers that fit a schema; added tokens are never in one."""
        tokenizer, appended = self.tokenizer, {*self.tokenizer.appended.values()}
        texts = [b"" if i in appended else tokenizer.piece_bytes(i) for i in range(tokenizer.vocab_size)]
        return Vocabulary(texts, self.config.decoder.end_tokens)

    def constraint(self, schema: object, settings: Settings) -> State | None:
        """What makes one answer, with these settings, fit a JSON schema; None: there is no schema.

        SchemaError: the schema cannot be kept. GenerationError: the shortest answer takes more than
        max_new_tokens, or there are beams.
        """
        if schema is None:
            return None
        if settings.num_beams > 1:
            raise GenerationError("num_beams", f"found {settings.num_beams}", "1 where a schema is given")
        return self.vocabulary.begin(compile(schema), settings.max_new_tokens)

    # ------------------------------------------------------------ questions and answers

    def ask(self, image: Pictures, question: str, **options: Any) -> str:
        """The answer to a question about a picture, several (a list), or none (None).

        options: those of `stream`, `Chat`'s among them, and the settings of generation.
        """
        return "".join(self.stream(image, question, **options))

    def stream(
        self,
        image: Pictures,
        question: str,
        *,
        conv_mode: str = "v1",
        history: History | None = None,
        exif: bool = True,
        watch: Watch | None = None,
        draft: "MobileVLM | str | None" = None,
        schema: object = None,
        **settings: Any,
    ) -> Iterator[str]:
        """The same answer in pieces, as they become certain: whole characters, and never a stop string.

        schema: a JSON schema (a dict), which the answer fits, then; see `constrained.schema`.
        """
        self.constraint(schema, settings_of(settings))  # what is wrong shows before pictures are encoded
        chat = Chat(self, image, conv_mode, history, exif, watch, draft)
        return chat.stream(question, forget=False, schema=schema, **settings)

    def batch(
        self,
        rows: "Iterable[Row | Answered | tuple[Any, str]]",
        max_new_tokens: int = NEW_TOKENS,
        **options: Any,
    ) -> "Iterator[Answered]":
        """Answers many rows, in their order, each with the answer that `ask` gives.

        rows: pairs of picture and question, or `rows.row.Row`s, which have their own max_new_tokens. What
        they have in common is computed once: put the questions about one picture one after another. options:
        those of `rows.answering.answer`. A row that fails holds its error, and the others go on.
        """
        from mvlm_np.rows.answering import answer  # not needed where one question is asked
        from mvlm_np.rows.row import as_rows

        return answer(self, as_rows(rows, max_new_tokens), **options)

    def chat(self, image: Pictures = None, **options: Any) -> Chat:
        """A conversation of several turns; options as for `Chat`."""
        return Chat(self, image, **options)

    def generate(
        self,
        ids: Sequence[int],
        image: Pictures = None,
        *,
        draft: "MobileVLM | str | None" = None,
        **settings: Any,
    ) -> list[int]:
        """The ids that follow these, up to the end of sequence or the limit; -200 stands for a picture.

        draft: as for `Chat`.
        """
        config, pictures, watch = self.config, len(as_list(image)), Watch()
        length = len(checked_ids(ids, pictures, config.decoder.vocab_size))
        checked = within_context(positions(length, pictures, config), settings_of(settings), config)
        drafting = draft_for(self, draft)
        x, at = self.embed(ids, self.encode_images(image))
        session = self.session()
        logits = session.prefill(x, at, checked.max_new_tokens, watch)
        end = config.decoder.end_tokens
        return list(
            session.generate(logits, checked, lambda new: new[-1] in end, len(ids), watch, draft=drafting)
        )

    def session(self) -> Session:
        """A decoder with an empty cache."""
        return Session(self.decoder, self.config.decoder, self.ops, self._cache)

    # ------------------------------------------------------------ the decoder's input

    def encode_image(self, image: Picture, exif: bool = True, watch: Watch | None = None) -> np.ndarray:
        """A picture as tokens for the decoder: float32 (144, D) with the LDP projectors.

        exif: turn a photo as its camera noted, and let `open_image` adapt what upstream does not show.
        Raises ImageError if the picture cannot be read.
        """
        watch = watch or Watch()
        self.require_vision()
        with watch.phase("preprocess"):
            pixels = preprocess(open_image(image, exif, adapt=exif), self.config.image)
        watch("pixel_values", pixels)
        for computed in self.encoding(pixels, watch):
            tokens = computed
        return tokens

    def require_vision(self) -> None:
        """PromptError: this model reads text only."""
        if self.vision is None or self.projector is None or self.config.vision is None:
            raise PromptError("image", "this model reads text only", "None", self._no_vision)

    def encoding(self, pixels: np.ndarray, watch: Watch | None = None) -> Iterator[np.ndarray]:
        """The way of pixel values (3, h, w) through tower and projector, a step at a time.

        Yields the tower's hidden states one after another, and at last the picture's tokens. For a model
        that sees; `require_vision` tells.
        """
        config, watch = self.config, watch or Watch()
        assert self.vision and self.projector and config.vision
        last = config.vision.num_hidden_layers if watch.everything else config.vision_layers
        with watch.phase("encode", last + 1):
            states = vision.hidden_states(pixels, self.vision, config.vision, self.ops)
            for i, state in zip(range(last + 1), states, strict=False):
                watch(f"vision.hidden_states.{i}", state)
                if i == config.vision_layers:
                    features = state[1:] if config.mm_vision_select_feature == "patch" else state
                yield state
        watch("vision.features", features)
        with watch.phase("project"):
            tokens = projector.project(features, self.projector, self.ops, watch.within("projector"))
        yield tokens

    def encode_images(
        self, images: Pictures, exif: bool = True, watch: Watch | None = None
    ) -> list[np.ndarray]:
        """Each picture's tokens, for an image, a list of them, or None."""
        several = as_list(images)
        encoded = [self.encode_image(image, exif, watch) for image in several]
        if several:
            self.give_back()
        return encoded

    def embed(self, ids: Sequence[int], images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Prompt ids and image tokens -> the decoder's input (T, D), and what stands at each position (T,).

        An id of -200 stands for one picture, in order. A position holds an id, or -i for the i-th picture.
        """
        array = checked_ids(ids, len(images), self.config.decoder.vocab_size)
        is_image = array == IMAGE_TOKEN
        lengths = np.ones(len(array), np.int64)
        lengths[is_image] = [len(image) for image in images]
        at = np.repeat(np.where(is_image, -np.cumsum(is_image), array), lengths)  # (T,)
        x = self.decoder.embed_tokens(np.maximum(at, 0))  # (T, D)
        if images:
            x[at < 0] = np.concatenate(images)
        return x, at

    # ------------------------------------------------------------ every stage

    def trace(
        self,
        image: Pictures,
        question: str,
        max_new_tokens: int = 24,
        num_beams: int | None = None,
        **options: Any,
    ) -> Stages:
        """Every stage of one question, {name: array}, named and shaped as in the goldens.

        options: those of `stages.trace`.
        """
        return trace(self, image, question, max_new_tokens, num_beams, **options)
