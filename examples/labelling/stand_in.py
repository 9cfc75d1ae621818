"""Annotators made of a rule, for where nobody is at hand: each opens a link of `p3o label`, reads the page and clicks.

    python examples/labelling/stand_in.py LINK [LINK ...]

They see what a person sees, answer by the rule of judges.py, and in one pair of ten choose the other side, as people slip.
"""

import sys
import threading
import time
import urllib.request
from html.parser import HTMLParser
from random import Random
from urllib.parse import urlencode, urljoin

from judges import informed

SLIPS = 0.1
PAUSE = 0.1
"""Seconds between two requests: the server lets an annotator have twenty a second."""


class Page(HTMLParser):
    """What stands on the page of a pair.

    Attributes:
        fields: the hidden ones of the form that answers; empty where there is nothing to answer.
        texts: the prompt's messages, then the two responses.
        heading: of the page.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.texts: list[str] = []
        self.heading = ""
        self._form, self._reads = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note which form and which text begins here."""
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._form = values.get("action", "")
        elif tag == "input" and values.get("type") == "hidden" and self._form == "/label":
            self.fields[values["name"]] = values["value"]
        elif tag == "div" and values.get("class") == "text":
            self._reads = "text"
            self.texts.append("")
        elif tag == "h1":
            self._reads = "heading"

    def handle_endtag(self, tag: str) -> None:
        """No text goes beyond its element."""
        if tag in ("div", "h1"):
            self._reads = ""

    def handle_data(self, data: str) -> None:
        """Keep what is read."""
        if self._reads == "text":
            self.texts[-1] += data
        elif self._reads == "heading":
            self.heading += data


def answer(prompt: str, first: str, second: str, random_: Random) -> str:
    """The button to press: first, second or tie."""
    [preference] = informed([prompt], [first], [second])
    if random_.random() < SLIPS:
        preference = -preference
    return "first" if preference > 0 else "second" if preference < 0 else "tie"


def annotate(link: str, number: int) -> int:
    """Answer every pair that this link's annotator is given; how many there were."""
    browser = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
    random_ = Random(number)
    done = 0
    page = Page(browser.open(link).read().decode())
    while page.fields or "right now" in page.heading:  # others have the last ones open, and may leave them
        time.sleep(PAUSE)
        if page.fields:
            *messages, first, second = page.texts
            form = {**page.fields, "choice": answer("\n".join(messages), first, second, random_)}
            request = browser.open(urljoin(link, "/label"), urlencode(form).encode())
            done += 1
        else:
            request = browser.open(urljoin(link, "/"))
        page = Page(request.read().decode())
    print(f"annotator {number}: {done} pairs; the page says: {page.heading}", flush=True)
    return done


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    threads = [threading.Thread(target=annotate, args=(link, i)) for i, link in enumerate(sys.argv[1:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
