"""The page of a server: photos, a question, and the answer as it is written.

One response holds all of it. It asks for answers as any other client of `/v1` does, and for nothing else.
"""

from html import escape
from pathlib import Path
from string import Template

from mvlm_np import pages

HERE = Path(__file__).parent
RULES = ("connect-src 'self'", "frame-ancestors 'none'")


def page(model: str, pictures: int, pad: bool = True) -> tuple[bytes, str]:
    """The page in UTF-8, and the value of the header Content-Security-Policy that belongs to it.

    model     the served model's name
    pictures  how many a request may have; 0 for a model that takes none
    pad       whether the model pads a picture to a square, or else cuts one out of its middle
    """
    parts = pages.parts(HERE, *RULES)
    fields = {"model": escape(model), "pictures": str(pictures), "fit": "pad" if pad else "cut"}
    template = Template((HERE / "page.html").read_text("utf-8"))
    return template.substitute(parts | fields).encode(), parts["policy"]
