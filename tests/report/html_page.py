"""A page, read as a browser reads it."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser

VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """What a page contains; every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.urls, self.ids, self._open = text, [], [], [], []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.urls += [attributes[key] for key in ("src", "href") if key in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def drawn(self):
        """What the script draws."""
        packed = re.search(r'id="drawn">([^<]*)<', self.text)[1]
        return json.loads(gzip.decompress(base64.b64decode(packed)))

    @property
    def words(self):
        """The page without its scripts and styles."""
        return re.sub(r"(?s)<(script|style).*?</\1>", "", self.text)
