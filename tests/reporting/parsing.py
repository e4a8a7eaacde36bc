"""A minimal HTML parser for the tests: elements, tables and text of a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    def walk(self) -> list[Element]:
        elements = [self]
        for child in self.children:
            if isinstance(child, Element):
                elements += child.walk()
        return elements

    def all(self, tag: str, **attributes: str) -> list[Element]:
        return [
            e
            for e in self.walk()
            if e.tag == tag and all(e.attributes.get(k) == v for k, v in attributes.items())
        ]

    def by_id(self, name: str) -> Element:
        (element,) = [e for e in self.walk() if e.attributes.get("id") == name]
        return element

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    @property
    def words(self) -> str:
        """The visible text: whitespace collapsed, word joiners removed."""
        return " ".join(self.text.replace("\u2060", "").split())

    def has_class(self, name: str) -> bool:
        return name in (self.attributes.get("class") or "").split()


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        assert len(element.attributes) == len(attrs), f"duplicate attribute on {tag}"
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Element:
    """The page as a tree; an unclosed element, or one closed twice, is an error."""
    builder = _Builder()
    builder.feed(page)
    builder.close()
    assert [e.tag for e in builder.open] == ["root"], "elements left open"
    return builder.root


def table_rows(page: Element, table_id: str) -> list[dict[str, Element]]:
    """Body rows of a table by column heading; a spanning cell appears in every row it covers."""
    table = page.by_id(table_id)
    headings = [_heading(th) for th in table.all("thead")[0].all("th")]
    rows: list[dict[str, Element]] = []
    for body in table.all("tbody"):
        spans: dict[int, tuple[int, Element]] = {}
        for line in body.all("tr"):
            if line.has_class("remark"):
                continue
            cells = iter([c for c in line.children if isinstance(c, Element)])
            row = {}
            for index, heading in enumerate(headings):
                left, cell = spans.get(index, (0, None))
                if not left or cell is None:
                    cell = next(cells)
                    left = int(cell.attributes.get("rowspan") or 1)
                spans[index] = (left - 1, cell)
                row[heading] = cell
            assert next(cells, None) is None, "more cells than headings"
            rows.append(row)
    return rows


def _heading(th: Element) -> str:
    parts = [
        c if isinstance(c, str) else "" if c.has_class("hint") else c.text for c in th.children
    ]
    return " ".join("".join(parts).split())


def name(cell: Element) -> str:
    """The text of a cell without its second line."""
    first = [c for c in cell.children if isinstance(c, str) or not c.has_class("detail")]
    return " ".join("".join(c if isinstance(c, str) else c.text for c in first).split())


def value(cell: Element) -> float | None:
    """The unrounded number behind a cell."""
    data = cell.all("data")
    return float(str(data[0].attributes["value"])) if data else None


def bounds(cell: Element) -> tuple[float, float] | None:
    """The unrounded interval behind a cell."""
    for span in cell.all("span"):
        if "data-low" in span.attributes:
            return float(str(span.attributes["data-low"])), float(str(span.attributes["data-high"]))
    return None
