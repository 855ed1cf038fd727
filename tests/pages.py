"""Helpers of the tests of reports: elements of a drawing, and the text of a page."""

import html
import re
import xml.etree.ElementTree as ElementTree

ENTRIES = ("distilled", "random_real", "random_init", "full_data", "teacher")
SPACE = "{http://www.w3.org/2000/svg}"


def parse(drawing):
    return ElementTree.fromstring(str(drawing))


def of_class(root, name):
    return [one for one in root.iter() if name in one.get("class", "").split()]


def text_of(path):
    """A page's words as a reader sees them."""
    plain = re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.S))
    return " ".join(html.unescape(plain).split())
