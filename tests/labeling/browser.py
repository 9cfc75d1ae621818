"""A headless Chromium, driven over its debugging pipe: no driver and no library in between.

The protocol is JSON messages that end in a null byte, on file descriptors 3 (to the browser) and 4 (from it).
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_PATIENCE = 20.0


class Browser:
    """One browser process; each page has cookies of its own."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        low_to, self._out = os.pipe()
        self._in, low_from = os.pipe()
        os.set_blocking(self._in, False)
        # The child moves its ends to 3 and 4, so here they are neither.
        to_browser, from_browser = (fcntl.fcntl(end, fcntl.F_DUPFD, 64) for end in (low_to, low_from))
        os.close(low_to)
        os.close(low_from)
        command = (
            f'exec "$0" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run '
            f'--hide-scrollbars --remote-debugging-pipe --user-data-dir="$1" about:blank '
            f"3<&{to_browser} 4>&{from_browser} {to_browser}<&- {from_browser}>&-"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, str(profile)],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(timeout=10)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Ask the browser something and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            for answer in self._messages():
                if answer.get("id") == self._number:
                    if "error" in answer:
                        raise RuntimeError(f"{method}: {answer['error']}")
                    return dict(answer["result"])
                self.events.append(answer)
            time.sleep(0.002)
        raise TimeoutError(method)

    def _messages(self) -> list[dict[str, Any]]:
        try:
            self._buffer += os.read(self._in, 1 << 20)
        except BlockingIOError:
            return []
        *whole, self._buffer = self._buffer.split(b"\0")
        return [json.loads(message) for message in whole]

    def page(self) -> "Page":
        """A new page, with no cookies."""
        return Page(self)


class Page:
    """A tab."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser something about this page."""
        return self._browser.call(method, self._session, **params)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; it works with the page's own scripts switched off, too."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            try:
                if value := self.run(expression):
                    return value
            except RuntimeError:  # between two documents
                pass
            time.sleep(0.01)
        raise TimeoutError(f"{expression}; the page says: {self.text()[:500]}")

    def text(self) -> str:
        """What the page says."""
        return str(self.run("document.body.innerText"))

    def open(self, url: str) -> None:
        """Go to an address and wait until it is loaded."""
        self.leaving(lambda: self.call("Page.navigate", url=url))

    def reload(self) -> None:
        """Load the page again."""
        self.leaving(lambda: self.call("Page.reload"))

    def leaving(self, action: Callable[[], Any]) -> None:
        """Do what loads another document, and wait for it."""
        self.run("document.documentElement.dataset.old = 'yes'")
        action()
        self.wait("!document.documentElement.dataset.old && document.readyState === 'complete'")

    def press(self, key: str) -> None:
        """Press and release a key, given as its character or its name."""
        text = {"Enter": "\r", "Tab": ""}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Tab": 9, "Escape": 27}.get(key, ord(key.upper()[0]))
        arguments: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **arguments)
        self.call("Input.dispatchKeyEvent", type="keyUp", **arguments)

    def write(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Scroll an element into view and click its middle with the mouse."""
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window, and the reader's theme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=theme)

    def switch_scripts_off(self) -> None:
        """From the next document on, none of its scripts run."""
        self.call("Emulation.setScriptExecutionDisabled", value=True)

    def screenshot(self, path: Path) -> None:
        """Save what the window shows."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def roles(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader is told of."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node.get("ignored")]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]

    def complaints(self) -> list[str]:
        """Errors and warnings in this page's console, and exceptions."""
        self.call("Runtime.evaluate", expression="0")  # what is on its way arrives before this answer
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"):
                found.append(str(event["params"]["entry"]))
            if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"):
                found.append(str(event["params"]))
        return found
