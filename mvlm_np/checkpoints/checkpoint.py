"""What every reader of models returns, a folder's as well as a GGUF's: a `Checkpoint`, with its tokenizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import Config

if TYPE_CHECKING:
    from mvlm_np.checkpoints.tokenizer_json import BytePairModel


@dataclass(frozen=True)
class AddedToken:
    """A token that is recognised in a text before SentencePiece sees the text.

    id       None: its id in the SentencePiece model or, if it is not there, the next free one
    special  left out of decoded text
    lstrip   white space before it is dropped from the text; `rstrip`: after it. Both are the
             published code's rule for a token that a file gives as a plain string
    """

    content: str
    id: int | None = None
    special: bool = False
    lstrip: bool = True
    rstrip: bool = True


@dataclass(frozen=True)
class StoredTokenizer:
    """A tokenizer as the files describe it; `inputs.tokenizer.make` makes one of it.

    model         the bytes of a SentencePiece model, or what a tokenizer.json says
    legacy        True: text after an added token starts anew, with a space of its own, so that
                  "</s>b" is `</s>`, `▁b`. False: it goes on as written: `</s>`, `b`
    added_tokens  tokens to recognise inside text, besides bos, eos and unk
    where         what errors call it
    bos, eos, unk  the pieces that play these roles
    add_bos, add_eos  whether they are put around a text
    files         the files that all this was read from, by name; none for a GGUF's own tokenizer
    """

    model: "bytes | BytePairModel"
    legacy: bool = True
    added_tokens: tuple[AddedToken, ...] = ()
    where: object = "tokenizer.model"
    bos: str = "<s>"
    eos: str = "</s>"
    unk: str = "<unk>"
    add_bos: bool = True
    add_eos: bool = False
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, whatever its format: settings, unread tensors under Hugging Face's names, and remarks.

    path            a model folder or a GGUF file
    read_tokenizer  reads the tokenizer's files. A model may have none, and still generate ids: then it is
                    this call that raises NoTokenizer, not opening
    no_vision       what to do, if the model has no vision tower and is to read pictures
    notes           what a user should be told, a line each
    """

    path: Path
    config: Config
    tensors: Mapping[str, Tensor]
    read_tokenizer: Callable[[], StoredTokenizer]
    notes: list[str] = field(default_factory=list)
    no_vision: str = "load a MobileVLM checkpoint for pictures"
