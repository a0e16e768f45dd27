"""One headless Chromium for all tests of the web page. `live_server` comes from the tests' own conftest."""

import shutil

import pytest

# Loaded before the page's own scripts, and outside its content security policy.
WATCH = """
window.violations = [];
window.pieces = 0;
document.addEventListener('securitypolicyviolation', (event) => {
  violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
});
new MutationObserver((records) => {
  for (const { target, addedNodes } of records) {
    if (target.classList?.contains('sentence') && addedNodes[0]?.nodeType === Node.TEXT_NODE) pieces += 1;
  }
}).observe(document, { subtree: true, childList: true });
"""


@pytest.fixture(scope="module")
def browser(live_server):
    """Module scope, not session: while Playwright runs, its event loop counts as running in this thread, and other
    tests could not start one. After `live_server`, for the same reason.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    executable = next(filter(None, found), None)
    if executable is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as running:
        # The tests may run as root, in a container, where Chromium's own sandbox cannot start.
        browser = running.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        playwright.expect.set_options(timeout=15_000)
        yield browser
        browser.close()


class Messages(list):
    """What the page wrote to the console as errors, and exceptions that nothing caught."""

    def unexpected(self) -> list[str]:
        # Chromium itself reports every answer that is not 2xx; the page shows those to the person.
        return [text for text in self if not text.startswith("Failed to load resource")]


@pytest.fixture
def open_page(browser):
    """Opens pages, each in a context of its own; in the end none may have failed or run what is not its own script."""
    opened = []

    def opener(**options):
        context = browser.new_context(reduced_motion="reduce", **options)
        context.set_default_timeout(15_000)
        context.add_init_script(WATCH)
        page, messages = context.new_page(), Messages()
        page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.messages = messages
        opened.append(page)
        return page

    yield opener
    for page in opened:
        assert page.messages.unexpected() == []
        assert page.evaluate("window.violations") == []
        assert page.evaluate("typeof window.hacked") == "undefined"
        page.context.close()


@pytest.fixture
def page(open_page):
    return open_page()
