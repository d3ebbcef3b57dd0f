"""TwiML, as far as it must be read and written here."""

from __future__ import annotations

from xml.etree import ElementTree


def parse_twiml(document: str) -> list[ElementTree.Element] | None:
    """The verbs of a document, or None if it is none."""
    try:
        root = ElementTree.fromstring(document)
    except ElementTree.ParseError:
        return None
    return list(root) if root.tag == "Response" else None


def redirect_to(url: str) -> str:
    """A document that only says where the real one is."""
    response = ElementTree.Element("Response")
    ElementTree.SubElement(response, "Redirect").text = url
    return ElementTree.tostring(response, encoding="unicode")
