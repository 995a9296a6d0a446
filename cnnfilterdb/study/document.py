"""The parts of a written study, and how they become a web page, Markdown and JSON."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure as MatplotlibFigure

from cnnfilterdb.core import markdown
from cnnfilterdb.plots import to_png
from cnnfilterdb.plots.style import compact

__all__ = ["Block", "Claim", "Picture", "Rows", "Section", "Study", "number", "p_value", "probability"]


#: Pixels of the page per inch of a figure, as on the page of a report.
_PIXELS = 120


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows under headings.

    Attributes:
        caption: What the rows are.
        columns: Headings.
        rows: One value per column: text, numbers or None.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns have numbers only."""
        return [
            all(row[place] is None or isinstance(row[place], int | float) for row in self.rows)
            for place in range(len(self.columns))
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A figure.

    Attributes:
        name: Name of its file, without suffix.
        figure: The figure.
        alternative: What it shows, for those who do not see it.
        caption: How to read it.
    """

    name: str
    figure: MatplotlibFigure
    alternative: str
    caption: str


#: A paragraph, a table or a figure.
Block = str | Rows | Picture


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A part of a study.

    Attributes:
        key: Name in addresses.
        heading: Heading.
        blocks: Paragraphs, tables and figures in order.
    """

    key: str
    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Claim:
    """A conclusion.

    Attributes:
        text: The statement.
        verdict: What the models show, in a few words.
        test: How it was tested; empty where nothing was.
        effect: Size of the effect, in words.
        interval: 95 % interval of the effect, in words.
        p: p-value; None without a test.
    """

    text: str
    verdict: str
    test: str = ""
    effect: str = ""
    interval: str = ""
    p: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """A study of a database, written out.

    Attributes:
        title: The question.
        answer: The answer, in a few sentences.
        claims: The conclusions.
        opening: Figures and tables of the first page, below the conclusions.
        sections: Everything else.
        tiles: Numbers of the first page by name.
        made: How and from what it was computed, by name.
    """

    title: str
    answer: Sequence[str]
    claims: Sequence[Claim]
    opening: Sequence[Block]
    sections: Sequence[Section]
    tiles: Mapping[str, int]
    made: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Study: {self.title} {self.answer[0]}"

    def pictures(self) -> list[Picture]:
        """All figures."""
        blocks = [*self.opening, *(block for section in self.sections for block in section.blocks)]
        return [block for block in blocks if isinstance(block, Picture)]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the figures, as JSON has it."""

        def plain(value: Any) -> Any:
            if isinstance(value, float) and not math.isfinite(value):
                return None
            return value.item() if hasattr(value, "item") else value

        def block(one: Block) -> dict[str, Any]:
            if isinstance(one, str):
                return {"text": one}
            if isinstance(one, Picture):
                return {"figure": one.name, "caption": one.caption}
            rows = [dict(zip(one.columns, map(plain, row), strict=True)) for row in one.rows]
            return {"table": one.caption, "rows": rows}

        return {
            "title": self.title,
            "answer": list(self.answer),
            "claims": [
                {
                    "text": claim.text, "verdict": claim.verdict, "test": claim.test, "effect": claim.effect,
                    "interval": claim.interval, "p": claim.p,
                }
                for claim in self.claims
            ],
            "opening": [block(one) for one in self.opening],
            "sections": [
                {"key": section.key, "heading": section.heading, "blocks": [block(one) for one in section.blocks]}
                for section in self.sections
            ],
            "numbers": dict(self.tiles),
            "made": dict(self.made),
        }  # fmt: skip

    def to_json(self) -> str:
        """Everything but the figures."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self, figures: str = "") -> str:
        """The study as Markdown.

        Args:
            figures: Folder of the figures, as the text refers to it.
        """
        lines = [f"# {self.title}", "", *_paragraphs(self.answer)]
        head = ("Conclusion", "What the models show", "Test", "Effect", "95 % interval", "p")
        rows = [(one.text, one.verdict, one.test, one.effect, one.interval, p_value(one.p)) for one in self.claims]
        lines += [_markdown_table(head, rows), ""]
        for one in self.opening:
            lines += _markdown(one, figures)
        for section in self.sections:
            lines += [f"## {section.heading}", ""]
            for one in section.blocks:
                lines += _markdown(one, figures)
        lines += ["## How it was made", "", *(f"- {name}: {markdown.text(value)}" for name, value in self.made.items())]
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self) -> str:
        """The study as one web page, which loads nothing and has no script."""
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"cell": _cell, "p": p_value, "compact": compact, "prose": _prose}
        text = files("cnnfilterdb.study").joinpath("study.html").read_text(encoding="utf-8")
        style = files("cnnfilterdb.plots").joinpath("report.css").read_text(encoding="utf-8")
        return environment.from_string(text).render(study=self, style=style, kind=_kind, source=_source, size=_size)


def number(value: float | None, digits: int = 3) -> str:
    """A number in few digits, for a sentence.

    >>> number(0.02821), number(None), number(-0.0001), number(12.34567)
    ('0.028', '–', '0.000', '12.3')
    """
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.3g}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def probability(p: float | None) -> str:
    """A p-value for a sentence.

    >>> probability(0.0432).replace(chr(160), " ")   # a space that breaks no line
    'p 0.043'
    """
    return f"p\N{NO-BREAK SPACE}{p_value(p)}"


def p_value(p: float | None) -> str:
    """A p-value with three decimals, and with more where these would not show on which side of 0.05 it is.

    >>> p_value(0.0432), p_value(0.05), p_value(0.0496), p_value(0.05004), p_value(None)
    ('0.043', '0.050', '0.0496', '0.05004', '')
    """
    if p is None:
        return ""
    texts = (f"{p:.{digits}f}" for digits in range(3, 17))
    return next((text for text in texts if float(text) != 0.05 or p == 0.05), f"{p}")


def _cell(value: Any, column: str = "") -> str:
    """A cell of a table; p-values are recognised by the name of their column."""
    if isinstance(value, float) and math.isfinite(value) and column.partition(",")[0] == "p":
        return p_value(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if hasattr(value, "item"):
        return _cell(value.item(), column)
    return number(value) if isinstance(value, float) else "".join(c if c.isprintable() else " " for c in str(value))


def _prose(text: str) -> Markup:
    """A paragraph for a page, in which what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _kind(block: Block) -> str:
    return {str: "text", Rows: "table", Picture: "picture"}[type(block)]


def _source(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(to_png(picture.figure)).decode("ascii")


def _size(picture: Picture) -> list[int]:
    return [round(_PIXELS * float(inches)) for inches in picture.figure.get_size_inches()]


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in (_marked(text), "")]


def _marked(text: str) -> str:
    """A paragraph as Markdown, in which what stands between backticks is code."""
    found = ""
    for place, part in enumerate(re.split(r"`([^`]+)`", text)):
        shown = markdown.code(part) if place % 2 else markdown.text(part)
        found += shown if place % 2 else f"{' ' * part.startswith(' ')}{shown}{' ' * part.endswith(' ')}"
    return found


def _markdown(block: Block, figures: str) -> list[str]:
    if isinstance(block, str):
        return [_marked(block), ""]
    if isinstance(block, Picture):
        path = f"{figures}/{block.name}.png" if figures else f"{block.name}.png"
        return [f"![{markdown.text(block.alternative)}]({path})", "", f"*{markdown.text(block.caption)}*", ""]
    return [f"**{markdown.text(block.caption)}**", "", _markdown_table(block.columns, block.rows), ""]


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return markdown.table(
        [markdown.text(column) for column in columns],
        [[markdown.text(_cell(value, column)) for value, column in zip(row, columns, strict=True)] for row in rows],
    )
