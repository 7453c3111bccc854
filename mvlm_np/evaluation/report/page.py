"""What a run of a benchmark shows, as one page for a browser, a phone's too, that needs nothing but itself.

However many questions there are, the page stays small: it has pictures of a few answers, the words of some
hundred, and figures of all.
"""

from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from mvlm_np import pages
from mvlm_np.errors import UserError
from mvlm_np.evaluation.report.findings import Findings
from mvlm_np.evaluation.scores import Judged, Part
from mvlm_np.evaluation.statistics import Difference, Estimate

HERE = Path(__file__).parent
LARGE, SMALL = 384, 160  # pixels of a picture's longer side
CHANGES, PICTURED = 500, 40  # so many answers that changed are shown, and so many of them with their picture
WORDS = 400  # characters of a question or an answer
FEW = 10  # with fewer pictures that differ, an interval of the difference is rough

POINTS = {"mme"}  # whose scores are no per cent

Pictures = Callable[[Judged], Image.Image | None]  # a question's picture, if it has one

SCORES = (
    "The interval of a score is for other pictures and questions of the same kind: of 100 such intervals, 95 "
    "hold the score that all of them together would give. It counts pictures, not questions: the questions "
    "about one picture are right and wrong together, as are MME's two of a picture and MMBench's rows of a "
    "question. It is Wilson's interval for as many independent questions as would give the variance between "
    "pictures that was found, which is that of the score's linear part (Taylor linearisation, CR2).",
    "A published score is of these same questions. So a faithful copy of the model comes closer to it than "
    "the interval is wide: what lies within the interval may still be a fault of the copy.",
)
PAIRS = (
    "The difference of two runs is taken picture by picture, so that what makes a question hard for both "
    "falls out. Its interval is the normal one, from the variance between pictures.",
    "p comes from a randomisation test: were the two runs equally good, their answers about a picture might "
    "as well be swapped. p is the share of random swaps after which the scores differ at least as much as "
    "they do now. Of right and wrong answers, each with a picture of its own, this is McNemar's test.",
    "Differences of single categories have no p. Of twenty intervals one leaves 0 out by chance alone.",
)


def write_page(path: Path, found: Findings, pictures: Pictures = lambda one: None) -> None:
    """Writes the page. UserError: it cannot be written."""
    pages.write(path, page(found, pictures))


def page(found: Findings, pictures: Pictures = lambda one: None) -> str:
    """The page's HTML. Pictures that cannot be read (UserError, OSError) are left out, which it says."""
    show = _Showing(found, pictures)
    fields = pages.parts(HERE) | {
        "title": escape(f"{found.run.benchmark}: {found.run.name}"),
        "benchmark": escape(found.run.benchmark),
        "score_name": escape(found.run.score.name),
        "name": escape(found.run.name),
        "value": show.score(found.run.score.value),
        "interval": show.interval(found.estimate),
        "scale": show.scale(),
        "facts": "".join(f"<dt>{escape(what)}</dt><dd>{escape(words)}</dd>" for what, words in show.facts()),
        "remarks": _list(map(escape, found.run.score.remarks), "remarks"),
        "against": show.against(),
        "categories": show.categories(),
        "wrong": show.wrong(),
        "changes": show.changes(),
        "others": show.others(),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in SCORES + (PAIRS if found.against else ())),
    }
    return Template((HERE / "page.html").read_text("utf-8")).substitute(fields)


class _Showing:
    """The parts of one page."""

    def __init__(self, found: Findings, pictures: Pictures):
        self.found, self.pictures = found, pictures
        self.name = found.run.score.benchmark
        self.unit = "" if self.name in POINTS else " %"

    # ------------------------------------------------------------ figures

    def score(self, value: float) -> str:
        return f"{value:.1f}{self.unit}"

    def interval(self, estimate: Estimate | None) -> str:
        if estimate is None:
            return "no interval: as published, answers count for other questions than their own"
        return f"95 %: {estimate.low:.1f} to {self.score(estimate.high)}"

    def facts(self) -> Iterator[tuple[str, str]]:
        score = self.found.run.score
        if score.published is not None:
            yield "published", self.score(score.published)
        for what, count in score.counts.items():
            yield what, f"{count:,}"
        if estimate := self.found.estimate:
            yield "pictures", f"{estimate.pictures:,}"
        yield from self.found.run.facts.items()

    def scale(self) -> str:
        """The score and its interval on a scale, and what they are compared with."""
        estimate, score = self.found.estimate, self.found.run.score
        if estimate is None:
            return ""
        marks = [("published", score.published)]
        if self.found.against:
            other = self.found.against.other
            marks.append((other.name, other.score.value))
        known = [(name, value) for name, value in marks if value is not None]
        values = [estimate.low, estimate.high, *(value for _, value in known)]
        margin = 0.1 * (max(values) - min(values)) or 1
        start, end = max(0.0, min(values) - margin), max(values) + margin
        ticks = "".join(
            f'<rect class="tick" x="{100 * (value - start) / (end - start) - 0.4:.2f}" y="{y}"'
            ' width=".8" height="4"/>'
            for y, (_, value) in zip((0, 6), known, strict=False)
        )
        drawn = _span(estimate, start, end, 4, 2) + ticks
        names = " above and ".join(f"{escape(name)} {self.score(value)}" for name, value in known)
        names = f'<i class="tick"></i>{names}' if names else ""
        axis = '<rect class="axis" y="9.7" width="100" height=".3"/>'
        return (
            f'{_svg(axis + drawn)}<p class="ends"><span>{self.score(start)}</span>'
            f"<span>{self.score(end)}</span></p>"
            f'<p class="key"><i></i>the score and its 95 % interval{names}</p>'
        )

    def categories(self) -> str:
        found, beside = self.found, self.found.against
        if not found.categories:
            return ""
        most = 200 if self.name == "mme" else 100
        heads = ["category", "score"] + (["other", "difference"] if beside else [])
        rows = []
        for name, part in found.categories.items():
            bar = f'<rect class="bar" y="1" width="{100 * part.value / most:.2f}" height="8"/>'
            drawn = _svg(bar + _span(part, 0, most, 4, 2))
            cells = [
                f'<th scope="row">{escape(name)}<small>{part.pictures:,} pictures</small>{drawn}</th>',
                f'<td class="number">{self.score(part.value)}'
                f"<small>{part.low:.1f} to {part.high:.1f}</small></td>",
            ]
            if beside:
                cells += self._beside(beside.categories.get(name))
            rows.append(f"<tr>{''.join(cells)}</tr>")
        scroll = '<div class="scroll" tabindex="0" role="region" aria-label="Categories">'
        return _section("By category", f"{scroll}{_table(heads, rows)}</div>")

    def _beside(self, d: Difference | None) -> list[str]:
        """A category's score in the other run, and the difference."""
        if d is None:
            return ['<td class="number">–</td>'] * 2
        return [
            f'<td class="number">{self.score(d.score - d.value)}</td>',
            f'<td class="number">{_signed(d.value)}<small>{_signed(d.low)} to {_signed(d.high)}</small></td>',
        ]

    def others(self) -> str:
        """Figures that the published scripts print besides."""
        tables: dict[str, list[Part]] = {}
        for part in self.found.run.score.parts:
            tables.setdefault(part.table, []).append(part)
        drawn = []
        for name, parts in tables.items():
            rows = [
                f'<tr><th scope="row">{escape(part.name)}</th><td class="number">{part.value:.2f}</td>'
                f'<td class="number">{"" if part.of is None else f"{part.of:,}"}</td></tr>'
                for part in parts
            ]
            table = _table(["", "value", "questions"], rows)
            drawn.append(f"<details><summary>{escape(name or 'figures')}</summary>{table}</details>")
        return _section("What the published scripts print besides", "".join(drawn)) if drawn else ""

    # ------------------------------------------------------------ answers

    def wrong(self) -> str:
        wrong = self.found.wrong
        if not wrong:
            return ""
        known = any(one.probability is not None for one in wrong)
        words = (
            "The answers that were wrong although the model gave them the highest probability."
            if known
            else "Some of the answers that were wrong. The answers file does not say how probable they were."
        )
        theirs = {one.id: one for one in self.found.against.other.judged} if self.found.against else {}
        cards = []
        for one in wrong:
            other = theirs.get(one.id)
            said = self._said(one, other if other and other.answer != one.answer else None)
            cards.append(f"<li>{self._picture(one, LARGE)}{_asked(one)}{said}</li>")
        return _section("Wrong, and sure of it", f"<p>{words}</p>{_list(cards, 'cards', bare=True)}")

    def against(self) -> str:
        beside = self.found.against
        if beside is None:
            return ""
        d, other = beside.difference, beside.other
        rows = [
            f'<tr><th scope="row">{escape(name)}</th><td class="number">{self.score(value)}</td></tr>'
            for name, value in ((self.found.run.name, d.score), (other.name, d.score - d.value))
        ]
        rows.append(
            f'<tr><th scope="row">difference</th><td class="number">{_signed(d.value)}'
            f"<small>95 %: {_signed(d.low)} to {_signed(d.high)}</small></td></tr>"
        )
        words = [
            _verdict(d),
            f"Both were asked {d.questions:,} questions, which make these scores. Of the answers "
            f"{d.changed:,} differ: {d.lost:,} are worth less than the other's, {d.gained:,} more.",
        ]
        if 0 < d.telling < FEW:
            words.append(
                f"Only {d.telling} of {d.pictures:,} pictures tell the two apart, so the interval is rough."
            )
        if beside.reworded:
            words.append(f"{beside.reworded:,} questions were put in other words than in the other run.")
        text = "".join(f"<p>{escape(sentence)}</p>" for sentence in words)
        return _section(f"Beside {other.name}", _table(["", "score"], rows) + text)

    def changes(self) -> str:
        beside = self.found.against
        if beside is None or not beside.changes:
            return ""
        shown = beside.changes[:CHANGES]
        kinds = {"all": "all", "lost": "worth less now", "gained": "worth more now", "same": "worth the same"}
        filters = "".join(
            f'<label><input type="radio" name="only" id="only-{kind}"'
            f"{' checked' * (kind == 'all')}>{words}</label>"
            for kind, words in kinds.items()
        )
        rows = [
            f'<li class="{change.kind}">{self._picture(change.now, SMALL) if i < PICTURED else ""}'
            f"<div>{_asked(change.now)}{self._said(change.now, change.then)}</div></li>"
            for i, change in enumerate(shown)
        ]
        left = len(beside.changes) - len(shown)
        more = f"<p>{left:,} more are not shown.</p>" if left else ""
        legend = '<legend class="unseen">Which answers are shown</legend>'
        body = f'<fieldset class="filter">{legend}{filters}</fieldset>{_rows(rows)}{more}'
        return _section("Answers that changed", body, id="changes")

    def _said(self, one: Judged, other: Judged | None) -> str:
        """What was said, and what is right."""
        lines = [("right", escape(_cut(one.gold)))]
        lines.append(("this run" if other else "said", _answer(one)))
        if other:
            lines.append(("the other", _answer(other)))
        terms = "".join(f"<dt>{escape(what)}</dt><dd>{words}</dd>" for what, words in lines)
        return f'<dl class="said">{terms}</dl>'

    def _picture(self, one: Judged, side: int) -> str:
        if not one.picture:
            return ""
        try:
            picture = self.pictures(one)
        except (UserError, OSError) as error:
            return f'<p class="soft">Its picture cannot be shown. {escape(str(error))}</p>'
        if picture is None:
            return ""
        small = picture.convert("RGB")
        small.thumbnail((side, side))
        return f'<img src="{pages.inline(small, "JPEG", quality=80)}" alt="">'


def _verdict(d: Difference) -> str:
    if d.telling == 0:
        share = 1 - 0.05 ** (1 / d.pictures)  # with this share, none in so many is one case in twenty
        return (
            "Not one picture tells the two apart. Of all pictures of this kind, those that do are fewer than "
            f"{100 * share:.2g} % (with 95 %)."
        )
    if d.p < 0.05:
        return f"Chance alone would seldom make so large a difference ({_p(d.p)})."
    return f"Chance alone may well make such a difference ({_p(d.p)})."


def _p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _cut(text: str) -> str:
    return text if len(text) <= WORDS else text[:WORDS] + " …"


def _asked(one: Judged) -> str:
    return f'<p class="asked">{escape(_cut(one.prompt))}</p>'


def _answer(one: Judged) -> str:
    if one.answer is None:
        return "no answer"
    worth = "better" if one.right == 1 else "worse" if one.right == 0 else "soft"
    chance = "" if one.probability is None else f" <small>{_chance(one.probability)}</small>"
    return f'<b class="{worth}">{escape(_cut(one.answer)) or "nothing"}</b>{chance}'


def _chance(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.9995 else "> 99.9 %"


def _span(estimate: Estimate, start: float, end: float, y: float, height: float) -> str:
    """An interval, and the score within it, on a scale of 100."""
    low, value, high = (
        100 * (v - start) / (end - start) for v in (estimate.low, estimate.value, estimate.high)
    )
    return (
        f'<rect class="span" x="{low:.2f}" y="{y}" width="{max(high - low, 0.3):.2f}" height="{height}"/>'
        f'<rect class="span" x="{value - 0.4:.2f}" y="{y - 2}" width=".8" height="{height + 4}"/>'
    )


def _svg(drawn: str) -> str:
    """A strip of 100 by 10, as wide as there is room."""
    return f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'


def _section(heading: str, body: str, id: str = "") -> str:
    named = f' id="{id}"' if id else ""
    return f"<section{named}><h2>{escape(heading)}</h2>{body}</section>"


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    first, *others = (escape(head) for head in heads)
    cells = f'<th scope="col">{first}</th>' if first else "<td></td>"
    cells += "".join(f'<th scope="col" class="number">{head}</th>' for head in others)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _list(items: Iterable[str], kind: str, bare: bool = False) -> str:
    made = "".join(items if bare else (f"<li>{item}</li>" for item in items))
    return f'<ul class="{kind}">{made}</ul>' if made else ""


def _rows(rows: Iterable[str]) -> str:
    return f'<ol class="rows">{"".join(rows)}</ol>'
