#!/bin/bash
# DOMSnapshot.captureSnapshot: a string index of -1 stands for "no string", so a reader that looks it up in the table of
# strings gets the table's last entry in Python, and that may be anything on the page; and nodes that wait for a drop are
# not clickable. Needs a Chromium on the PATH, or CHROMIUM=PATH.
set -e
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q playwright==1.65.0 2>/dev/null || "$here/venv/bin/pip" install -q playwright
chromium=${CHROMIUM:-$(command -v chromium-headless-shell || command -v chromium)}
cat > "$here/t.py" <<'P'
import asyncio, importlib.metadata, sys
from playwright.async_api import async_playwright
PAGE = """<input type=date><div id=z>zone</div><p>LAST WORDS</p>
<script>z.addEventListener('drop', () => 1); z.addEventListener('dragover', e => e.preventDefault())</script>"""
async def main():
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox"])
        print("playwright", importlib.metadata.version("playwright"), "chromium", browser.version)
        page = await browser.new_page()
        await page.set_content(PAGE)
        cdp = await page.context.new_cdp_session(page)
        snapshot = await cdp.send("DOMSnapshot.captureSnapshot", {"computedStyles": []})
        nodes, strings = snapshot["documents"][0]["nodes"], snapshot["strings"]
        value = nodes["inputValue"]["value"][0]
        named = [strings[nodes["nodeName"][i]] for i in nodes["isClickable"]["index"]]
        print("index of an empty date's value:", value, "-> strings[index] is", repr(strings[value][:40]))
        print("clickable:", named)
        await browser.close()
        sys.exit(not (value == -1 and strings[value] != "" and "DIV" not in named))
asyncio.run(main())
P
"$here/venv/bin/python" "$here/t.py" "$chromium"
