"""The demo model: a small MobileVLM V2 that this project has trained itself, and pictures to ask it about.

It knows made-up pictures of shapes, lamps and instruments, and nothing else; docs/demo.md says how well. To
the rest of the package it is a model folder like any other.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
PICTURES = Path(__file__).parent / "pictures"
NOTE = (
    "this is the demo model, which knows only drawn shapes, lamps and instruments; for photos: "
    "mvlm pull mtgv/MobileVLM_V2-1.7B, then --model"
)
