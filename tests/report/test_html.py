"""The report as one HTML file: what is in it, and what a browser makes of it."""

import base64
import html
import io
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest

from cnn_gp.evaluation.tables import Table
from cnn_gp.report import figures
from cnn_gp.report.html import as_html
from cnn_gp.report.page import Gallery, Heading, Paragraph, Picture, Thumbnail, as_markdown
from helpers.waiting import PATIENCE

IMAGE = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
ROWS = [["b<i>", "1,000", "10.5"], ["a", "200", ""], ["c", "30", "9.75"]]
BLOCKS = [
    Table(["run", "images", "error, %"], ROWS, "lrr"),
    Heading("Curves & more"),
    Paragraph("What `a_b.npz` holds is <none>."),
    Picture("curve", "Errors"),
    Gallery(Picture("curve", "Wrong"), [Thumbnail(figures.thumbnail(IMAGE), ["4 as 9", "test image 7", "9: 0.750"])]),
]


@pytest.fixture
def page(tmp_path):
    figures.save(figures.spectra({"made": np.array([3.0, 1.0])}), tmp_path / "curve.png")
    return as_html("Results", BLOCKS, tmp_path)


def test_everything_is_in_the_one_file(page, tmp_path):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:image/png;base64,", "#section-")) for source in sources)
    assert "http" not in re.sub('base64,[^"]*', "", page)
    curve, wrong = (base64.b64decode(s.split(",")[1]) for s in sources if s.startswith("data:"))
    assert curve == (tmp_path / "curve.png").read_bytes()
    # Dark on light, as in the figures.
    pixels = matplotlib.image.imread(io.BytesIO(wrong))[..., 0]
    np.testing.assert_allclose(pixels, 1 - IMAGE, atol=0.01)


def test_texts_are_escaped(page):
    assert "b&lt;i&gt;" in page and "b<i>" not in page
    assert "What <code>a_b.npz</code> holds is &lt;none&gt;." in page
    assert re.search(r'<a href="#section-1">Curves &amp; more</a>', page)
    assert re.search(r"test image 7<br>9: 0\.750</p>", page)


def test_the_same_blocks_as_markdown():
    assert as_markdown("Results", BLOCKS).split("\n\n")[2:] == [
        "## Curves & more",
        "What `a_b.npz` holds is <none>.",
        "![Errors](figures/curve.png)",
        "![Wrong](figures/curve.png)\n",
    ]


#: Clicks on columns' names, and puts what is seen then into the page.
CLICKS = """<script>
  const seen = [], buttons = document.querySelectorAll("th button");
  const column = i => [...document.querySelectorAll("tbody tr")].map(row => row.cells[i].textContent).join(" ");
  for (const i of [1, 1, 2, 2, 0]) {
    buttons[i].click();
    seen.push(column(i) + " " + buttons[i].parentElement.getAttribute("aria-sort"));
  }
  seen.push(getComputedStyle(document.querySelector(".gallery > div > p")).display);
  // A page that nobody looks at has no pointer and no focus.
  const pointed = [...document.styleSheets[0].cssRules].filter(rule => rule.selectorText?.includes(":hover p"));
  seen.push(pointed.map(rule => rule.style.display).join(" "));
  seen.push(getComputedStyle(document.body).backgroundColor);
  seen.push(document.documentElement.scrollWidth <= window.innerWidth);
  document.body.append(Object.assign(document.createElement("pre"), {id: "seen", textContent: seen.join("\\n")}));
</script></body>"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(page, tmp_path, width, dark):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium: none of chromium, chromium-browser and google-chrome is on the PATH")
    (tmp_path / "page.html").write_text("<!doctype html>" + page.replace("</body>", CLICKS))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-quic"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom"]
    command.append((tmp_path / "page.html").as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    seen = html.unescape(re.search('<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)[1]).splitlines()
    assert seen == [
        "30 200 1,000 ascending",
        "1,000 200 30 descending",
        # Without a value: last, either way.
        "9.75 10.5  ascending",
        "10.5 9.75  descending",
        "a b<i> c ascending",
        "none",
        "block",
        "rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)",
        "true",
    ]
