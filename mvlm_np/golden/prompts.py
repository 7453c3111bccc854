"""How ports turn a question into ids: the way of `inputs`, and others that are in use."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mvlm_np.inputs.conversation import IMAGE_MARK, TEMPLATES, render
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer, tokenize_prompt


@dataclass(frozen=True)
class Prompt:
    """A question and the text that the model continues; calling it gives its ids."""

    tokenizer: Tokenizer
    question: str
    text: str

    @property
    def images(self) -> int:
        return self.text.count(IMAGE_MARK)

    def __call__(self) -> list[int]:
        return tokenize_prompt(self.text, self.tokenizer)

    def without_prefix(self) -> list[int]:
        """No space before the text that follows a picture."""
        first, *rest = self.text.split(IMAGE_MARK)
        return self.tokenizer.encode(first) + self._pieces(rest)

    def without_any_prefix(self) -> list[int]:
        """No space before any text."""
        first, *rest = self.text.split(IMAGE_MARK)
        bos = [self.tokenizer.bos_id] * self.tokenizer.add_bos
        return bos + self.tokenizer.encode_inside(first) + self._pieces(rest)

    def _pieces(self, rest: list[str]) -> list[int]:
        return [i for piece in rest for i in (IMAGE_TOKEN, *self.tokenizer.encode_inside(piece))]

    def other_templates(self) -> dict[str, Callable[["Prompt"], list[int]]]:
        """What else ports write around the question."""
        images, q = f"{IMAGE_MARK}\n" * self.images, self.question
        system, asked = TEMPLATES["v1"].system, f"USER: {images}{q}"
        texts = {
            name: render(name, q, self.images)
            for name in TEMPLATES
            if q or TEMPLATES[name].sep_style != "LLAMA_2"
        }
        texts |= {
            "no system text": f"{asked} ASSISTANT:",
            "no template": f"{images}{q}",
            "no ASSISTANT:": f"{system} {asked}",
            "a space at the end": f"{system} {asked} ASSISTANT: ",
            "a newline at the end": f"{system} {asked} ASSISTANT:\n",
            "newlines between the turns": f"{system}\n\n{asked}\nASSISTANT:",
            "one newline between the turns": f"{system}\n{asked}\nASSISTANT:",
            "two spaces before the turns": f"{system}  {asked}  ASSISTANT:",
            "no newline after the picture": f"{system} {asked} ASSISTANT:".replace(
                f"{IMAGE_MARK}\n", IMAGE_MARK
            ),
            "a space after the picture": f"{system} {asked} ASSISTANT:".replace("\n", " ", self.images),
            "</s> before the answer": f"{system} {asked}</s>ASSISTANT:",
            "Human and Assistant": f"{system} {asked} ASSISTANT:".replace("USER:", "Human:").replace(
                "ASSISTANT:", "Assistant:"
            ),
            "ChatML": f"<|im_start|>user\n{images}{q}<|im_end|>\n<|im_start|>assistant\n",
            "no space before the picture": f"{system} {asked} ASSISTANT:".replace(
                f" {IMAGE_MARK}", IMAGE_MARK
            ),
        }
        return {name: partial(_tokenized, text) for name, text in texts.items() if text != self.text}

    def other_places(self) -> dict[str, Callable[["Prompt"], list[int]]]:
        """Where else ports put the picture."""
        if self.images != 1:
            return {}
        bare = self.text.replace(f"{IMAGE_MARK}\n", "").replace(IMAGE_MARK, "")
        texts = {
            "before everything": f"{IMAGE_MARK}\n{bare}",
            "before everything, without a newline": IMAGE_MARK + bare,
            "at the end": bare + IMAGE_MARK,
        }
        if self.question and self.question in bare:
            texts["after the question"] = bare.replace(self.question, f"{self.question}\n{IMAGE_MARK}")
            texts["after the question, without a newline"] = bare.replace(
                self.question, f"{self.question}{IMAGE_MARK}"
            )
        return {name: partial(_tokenized, text) for name, text in texts.items() if text != self.text}


def _tokenized(text: str, prompt: Prompt) -> list[int]:
    return tokenize_prompt(text, prompt.tokenizer)
