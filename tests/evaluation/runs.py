"""Made-up runs of benchmarks, for tests of what is told of them."""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from mvlm_np.evaluation.report.findings import Run
from mvlm_np.evaluation.scores import Judged, Part, Score, measure

CATEGORIES = {
    "gqa": ("query", "verify", "choose"),
    "pope": ("adversarial", "popular", "random"),
    "mme": ("existence", "count", "code_reasoning"),
    "mmbench": ("ocr", "image_scene"),
    "textvqa": ("default",),
}
TITLES = {"gqa": "GQA", "pope": "POPE", "mme": "MME", "mmbench": "MMBench", "textvqa": "TextVQA"}


def questions(benchmark: str, pictures: int, seed: int) -> list[Judged]:
    """Six questions about each of these pictures, with answers that the seed chooses."""
    random = np.random.default_rng(seed)
    found = []
    for picture in range(pictures):
        easy = 0.9 if picture % 2 else 0.6
        for i in range(6):
            names = CATEGORIES[benchmark]
            category = names[picture % len(names)] if benchmark == "mme" else names[i % len(names)]
            paired = benchmark in ("mme", "mmbench")
            gold = ("yes", "no")[i % 2]
            right = float(random.random() < easy)
            if benchmark == "textvqa" and random.random() < 0.3:
                right = 0.6
            found.append(
                Judged(
                    id=f"{picture}/{i}",
                    group=f"{picture}/{i // 2 * 2}" if paired else f"{picture}/{i}",
                    category=category,
                    picture=f"{picture}.jpg",
                    prompt=f"Is there a <box> & a ball, number {i}?\nAnswer with a single word.",
                    answer=gold if right else "maybe",
                    gold=gold,
                    right=right,
                    probability=float(random.random()),
                    headline=category != "code_reasoning",
                )
            )
    return found


def run(benchmark: str, judged: list[Judged], by: str = "MobileVLM V2 1.7B, int4", **other: object) -> Run:
    """A run with these answers. other: fields of its score."""
    counts = {"answered": sum(one.answer is not None for one in judged), "expected": len(judged)}
    score = Score(
        benchmark,
        "Score",
        measure(benchmark, [one for one in judged if one.headline]),
        published=59.3,
        parts=(Part("words", "4", 41.18, 17), Part("words", "5", 20.0)),
        counts=counts,
    )
    facts = {"time": "3 h 20 min", "speed": "62 questions a minute"}
    return Run(by, TITLES[benchmark], replace(score, **other), judged, facts)  # type: ignore[arg-type]


def picture(one: Judged) -> Image.Image:
    """A question's picture."""
    number = int(one.picture.split(".")[0])
    image = Image.new("RGB", (640, 360 + 40 * (number % 5)), (40, 60, 80))
    ImageDraw.Draw(image).ellipse((50, 50, 300, 60 + 30 * (number % 8)), (200, 30 * (number % 8), 60))
    return image
