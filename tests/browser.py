"""A real browser for tests: headless Chromium, controlled over the Chrome DevTools Protocol.

    test -> JSON, ended by NUL, to Chromium's file 3 -> page
    page -> answers and events from Chromium's file 4 -> values, console errors, requests

No package is needed: with `--remote-debugging-pipe` Chromium uses the protocol over two pipes
(https://chromedevtools.github.io/devtools-protocol/). No port is opened, and the profile is a temporary
folder.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next((found for name in _NAMES if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason=f"no Chromium on PATH (looked for {', '.join(_NAMES)})"
)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-default-browser-check",
    "--no-first-run",
    "--remote-debugging-pipe",
)
_TIMEOUT = 60.0  # seconds for an answer; the browser starts slowly on a busy machine
# key -> (virtual key code, the text that it types)
_KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    " ": (32, " "),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}


class Browser:
    """One page in one browser; use it in a `with` block.

    Attributes:
        requests: URLs that the page requested, the page itself first; `data:` URLs are left out.
        failed_requests: "<url>: <reason>" for those that failed or that a policy blocked.
        console_errors: messages of errors, uncaught exceptions and policy violations.
    """

    def __init__(self, width: int = 1200, height: int = 900) -> None:
        self.requests: list[str] = []
        self.failed_requests: list[str] = []
        self.console_errors: list[str] = []
        self._urls: dict[str, str] = {}
        self._size = (width, height)
        self._number, self._session, self._loads = 0, "", 0
        self._received = b""

    def __enter__(self) -> "Browser":
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._start()
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.resize(*self._size)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for end in (self._to, self._from):
            os.close(end)
        self._folder.cleanup()

    def open(self, url: str) -> None:
        """Go to a URL (`path.as_uri()` for a file) and wait until it is loaded."""
        loads = self._loads
        answer = self.command("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer.get('errorText')}"
        self._read_until(lambda: self._loads > loads, f"{url} to load")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        answer = self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        details = answer.get("exceptionDetails")
        assert details is None, f"{script}: {_words(details)}"
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 10.0) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.02)
        return value

    def click(self, selector: str) -> None:
        """Click the middle of the first element that matches, with a real mouse event."""
        x, y = self._middle(selector)
        mouse = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.command("Input.dispatchMouseEvent", type="mousePressed", **mouse)
        self.command("Input.dispatchMouseEvent", type="mouseReleased", **mouse)

    def hover(self, selector: str) -> None:
        """Move the mouse to the middle of the first element that matches."""
        x, y = self._middle(selector)
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, selector: str, text: str) -> None:
        """Focus an element and insert text like an input method."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.command("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        """Press and release a key: `Enter`, `Tab`, ` `, `Escape`, `ArrowDown`, a letter."""
        code, text = _KEYS.get(key, (ord(key[0].upper()), key))
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        event["code"] = {" ": "Space"}.get(key, key if key in _KEYS else f"Key{key.upper()}")
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.command("Input.dispatchKeyEvent", **down, **event)
        self.command("Input.dispatchKeyEvent", type="keyUp", **event)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window in CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def screenshot(self, path: Path) -> None:
        """Write the complete page, also the part below the window, as a PNG."""
        picture = self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def pdf(self, path: Path) -> None:
        """Write the printed page as a PDF."""
        printed = self.command("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(printed["data"]))

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and wait for its answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answers: list[dict[str, Any]] = []
        self._read_until(lambda: bool(answers), method, number, answers)
        assert "error" not in answers[0], f"{method}: {answers[0].get('error')}"
        result: dict[str, Any] = answers[0]["result"]
        return result

    def _middle(self, selector: str) -> tuple[float, float]:
        place = self.evaluate(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            " if (!one) return null; one.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const box = one.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        assert place, f"nothing matches {selector}"
        return place[0], place[1]

    def _start(self) -> None:
        assert PROGRAM is not None, "no Chromium on PATH; mark the test with `needs_browser`"
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        # Above 9, so that neither is overwritten when they are copied to files 3 and 4.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]

        def connect() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [PROGRAM, *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)

    def _read_until(
        self, done: Any, what: str, number: int = 0, answers: list[dict[str, Any]] | None = None
    ) -> None:
        end = time.monotonic() + _TIMEOUT
        while not done():
            left = end - time.monotonic()
            ready = left > 0 and select.select([self._from], [], [], left)[0]
            assert ready, f"no answer of the browser for {_TIMEOUT:.0f} s, waiting for {what}"
            chunk = os.read(self._from, 1 << 20)
            assert chunk, f"the browser ended, waiting for {what}"
            *messages, self._received = (self._received + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if "method" in message:
                    self._note(message["method"], message["params"])
                elif message["id"] == number and answers is not None:
                    answers.append(message)

    def _note(self, event: str, params: dict[str, Any]) -> None:
        """Record an event."""
        if event == "Page.loadEventFired":
            self._loads += 1
        elif event == "Network.requestWillBeSent":
            url = params["request"]["url"]
            self._urls[params["requestId"]] = url
            if not url.startswith("data:"):
                self.requests.append(url)
        elif event == "Network.loadingFailed":
            reason = params.get("blockedReason") or params["errorText"]
            with contextlib.suppress(KeyError):  # it began before this page
                self.failed_requests.append(f"{self._urls[params['requestId']]}: {reason}")
        elif event == "Runtime.exceptionThrown":
            self.console_errors.append(_words(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            said = (str(one.get("value", one.get("description", ""))) for one in params["args"])
            self.console_errors.append(" ".join(said))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.console_errors.append(params["entry"]["text"])


def _words(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])
