"""What every page of ours is set in: one HTML file that asks for nothing and runs nothing but its own script."""

import base64
import hashlib
from pathlib import Path
from string import Template

from .markup import text

HERE = Path(__file__).parent

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src '$style_hash'; \
script-src '$script_hash'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<p class="eyebrow">$eyebrow</p>
<button type="button" id="theme" aria-pressed="false" hidden>Dark</button>
</header>
<main id="main">
$content
</main>
<footer><p>$footer</p></footer>
<script>$script</script>
</body>
</html>
""")


def whole_page(*, title: str, eyebrow: str, content: str, footer: str, style: str = "") -> str:
    """The page as text; `content` and `eyebrow` are ready HTML, title and footer plain words, `style` its own CSS."""
    style = (HERE / "style.css").read_text(encoding="utf-8") + style
    script = (HERE / "script.js").read_text(encoding="utf-8")
    return PAGE.substitute(
        title=text(title),
        eyebrow=eyebrow,
        content=content,
        footer=text(footer),
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )


def _csp_hash(source: str) -> str:
    """What a Content-Security-Policy names this very text by: nothing else on the page may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
