#!/bin/bash
# Chromium takes the last of several --disable-features alone. Playwright gives one by itself, so a caller's own, which
# comes last, switches all of Playwright's on again, without a word: HttpsUpgrades, MediaRouter and so on. Needs a
# Chromium on the PATH, or CHROMIUM=PATH.
set -e
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q playwright==1.65.0 2>/dev/null || "$here/venv/bin/pip" install -q playwright
chromium=${CHROMIUM:-$(command -v chromium-headless-shell || command -v chromium)}
cat > "$here/t.py" <<'P'
import asyncio, importlib.metadata, sys
from pathlib import Path
from playwright.async_api import async_playwright
async def off(driver, *args):
    browser = await driver.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox", *args])
    print("playwright", importlib.metadata.version("playwright"), "chromium", browser.version)
    await browser.new_page()
    cdp = await browser.new_browser_cdp_session()
    found = (await cdp.send("SystemInfo.getProcessInfo"))["processInfo"]
    pid = next(one["id"] for one in found if one["type"] == "renderer")
    words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split()  # what the browser itself goes by
    await browser.close()
    return {name for word in words if word.startswith("--disable-features=") for name in word.split("=")[1].split(",")}
async def main():
    async with async_playwright() as driver:
        alone, given = await off(driver), await off(driver, "--disable-features=RenderDocument")
    print("off by Playwright:", len(alone), "features; with one more given by the caller:", sorted(given))
    sys.exit(not ({"HttpsUpgrades", "MediaRouter"} <= alone and "RenderDocument" in given and "HttpsUpgrades" not in given))
asyncio.run(main())
P
"$here/venv/bin/python" "$here/t.py" "$chromium"
