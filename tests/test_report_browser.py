"""Tests the page of the report in headless Chromium: filters, keys, links, ratings, hostility."""

import shutil
import time
from pathlib import Path

import pytest
import report_data as made
from test_report_page import hostile, written

from sip.data import preferences

webdriver = pytest.importorskip("selenium.webdriver")
# Characters of report_data.HOSTILE that nobody would see.
HIDDEN = (
    "\0\x1b\u2028\u202e\u2066\ufeff\u00ad\u180e\u3164\u115f\u1160\u034f\u2800\uffa0\ufe0f\ufe00"
)
HIDDEN += "\U000e0100\U000e0001\U000e0041\U000e007f\u200c"
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """The directory of downloads."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    """A headless browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made_by = webdriver.ChromeService(DRIVER)
    with webdriver.Chrome(options=options, service=made_by) as found:
        found.set_script_timeout(120)  # the machine may be busy
        # Durations are the time of the page's thread, not of the clock.
        found.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        yield found


@pytest.fixture(autouse=True)
def quiet(browser):
    """Fails a test whose page logged anything: script errors, refused requests."""
    browser.get_log("browser")
    size(browser, 1300, 900)
    yield
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def lines():
    """The lines of more than 10,000 candidates."""
    found = made.prefixes(10, 170)
    assert sum(len(line["candidates"]) for line in found) > 10_000
    return found


@pytest.fixture(scope="module")
def many(lines, tmp_path_factory):
    """The page of more than 10,000 candidates."""
    workdir = made.workdir(tmp_path_factory.mktemp("many") / "w", lines)
    written(workdir)
    return workdir.parent / "page.html"


def size(browser, width, height):
    screen = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def opened(browser, page: Path, view: str = ""):
    """Opens a page and waits until its program has shown all."""
    browser.get("about:blank")  # another hash alone would not load the page again
    browser.get(f"{page.as_uri()}{view}")
    wait(lambda: browser.execute_script("return document.body.dataset.ready"))


def wait(holds, seconds=180):
    """Waits until `holds()`; returns its value."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found


def seconds(browser, script: str) -> float:
    """Runs a script of the page and returns the time of its thread, with layout, in seconds."""

    def total():
        found = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return next(x["value"] for x in found if x["name"] == "TaskDuration")

    before = total()
    browser.execute_script(script)
    return total() - before


def put(browser, **values):
    """Sets filters of the candidate browser."""
    for name, value in values.items():
        browser.execute_script(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            f"f-{name}",
            str(value),
        )


def press(browser, keys: str):
    """Presses keys on the page."""
    for key in keys:
        browser.find_element("tag name", "body").send_keys(key)


def text(browser, selector: str) -> str:
    """The text of an element as it is in the page."""
    return browser.execute_script(
        "return document.querySelector(arguments[0]).textContent", selector
    )


def view(browser) -> tuple[str, int]:
    """The row in view, and the number of the candidate in view."""
    here = "return [...document.querySelectorAll('.side .card')].findIndex(x => x.matches('.here'))"
    return text(browser, ".item.here b"), browser.execute_script(here)


def test_the_first_paint_is_early_and_ten_thousand_candidates_are_smooth(browser, many):
    paints = []
    for _ in range(3):  # the best of three: the machine may be busy
        opened(browser, many)
        found = "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
        paints.append(browser.execute_script(found))
    assert min(paints) < 2000 and many.stat().st_size < 20e6
    put(browser, q="nobody")
    spent = lambda script: seconds(browser, script)
    assert spent("for (let i = 0; i < 100; i++) go(i * 17, 0)") < 100 * 0.05
    assert spent("choose()") < 0.2
    # The list has only what is in view.
    assert browser.execute_script("return document.querySelectorAll('.item').length") < 60


def test_filters_show_what_they_say(browser, many, lines):
    opened(browser, many)

    def count(holds):
        return f"{sum(any(map(holds, line['candidates'])) for line in lines)} of {len(lines)}"

    put(browser, source="rewrite", low=0.9)
    assert text(browser, "#count").startswith(
        count(lambda x: x["source"] == "rewrite" and (x["score"] or 0) >= 0.9)
    )
    put(browser, source="", low="", high=0.1)
    low = count(lambda x: x["score"] is not None and x["score"] <= 0.1)
    assert text(browser, "#count").startswith(low)
    put(browser, high="", valid="invalid", source="suffix")
    assert text(browser, "#count").startswith("0 of")
    assert "Nothing fits" in text(browser, "#detail")
    put(browser, valid="", source="", q="PREFIX 30 7:")
    assert text(browser, "#count").startswith("1 of")
    assert "Prefix 30 7:" in text(browser, "#detail")
    put(browser, run="sip_learned", q="Better: ")  # the words of the judge
    assert text(browser, "#count").startswith(f"{len(lines)} of")


def test_keys_walk_and_the_address_is_a_link_to_the_view(browser, many):
    opened(browser, many)
    assert view(browser) == ("sip_learned, step 10, row 0", 0)
    press(browser, "nnnp")
    assert view(browser) == ("sip_learned, step 10, row 2", 0)
    press(browser, "jjjk")
    assert view(browser) == ("sip_learned, step 10, row 2", 2)
    put(browser, q="river")
    before, address = view(browser), browser.execute_script("return location.hash")
    opened(browser, many, address)
    assert view(browser) == before and text(browser, "#count").endswith("prefixes")
    assert browser.execute_script("return document.getElementById('f-q').value") == "river"
    press(browser, "/")
    assert browser.execute_script("return document.activeElement.id") == "f-q"


def test_chosen_and_rejected_are_marked_where_they_differ(browser, many, lines):
    opened(browser, many)
    for kind in ("chosen", "rejected"):
        at = next(i for i, x in enumerate(lines[0]["candidates"]) if x[kind])
        card = f".side .card:nth-of-type({at + 2})"  # after the prompt
        assert kind in text(browser, f"{card} .head")
        other = next(
            x for x in lines[0]["candidates"] if x["chosen" if kind == "rejected" else "rejected"]
        )
        shown = text(browser, f"{card} .text")
        marked = browser.execute_script(
            f"return [...document.querySelectorAll('{card} mark')].map(x => x.textContent)"
        )
        assert shown == lines[0]["candidates"][at]["text"] and marked
        kept = "".join(browser.execute_script(
            f"return [...document.querySelector('{card} .text').childNodes]"
            ".filter(x => x.nodeName !== 'MARK').map(x => x.textContent)"
        )).split()  # fmt: skip
        words = iter(other["text"].split())
        assert all(word in words for word in kept)  # what is not marked is in the other, in order


def test_ratings_are_exported_as_preferences_that_sip_reads(browser, many, lines, downloads):
    opened(browser, many)
    press(browser, "jb" + "jjw")  # candidate 1 is better than 3
    press(browser, "n" + "wjb")  # of the next prefix, 1 better than 0
    press(browser, "n" + "b")  # one alone is no pair
    assert text(browser, "#rated") == "2"
    opened(browser, many)  # they are kept
    assert text(browser, "#rated") == "2"
    put(browser, valid="rated")
    assert text(browser, "#count").startswith("3 of")
    browser.execute_script("document.getElementById('export').click()")
    path = wait(lambda: next(downloads.glob("*.jsonl"), None))
    found = preferences.read(str(path), max_skipped_fraction=0.0)
    of = lambda row, i: lines[row]["candidates"][i]["text"]
    assert [(x.prompt, x.chosen, x.rejected) for x in found.pairs] == [
        (lines[0]["prompt"], of(0, 1), of(0, 3)),
        (lines[1]["prompt"], of(1, 1), of(1, 0)),
    ]
    browser.execute_script("document.getElementById('forget').click()")
    assert text(browser, "#rated") == "0"


def test_two_workdirs_show_the_same_prefix_side_by_side(browser, tmp_path):
    one = made.workdir(tmp_path / "one", made.prefixes(3, 4))
    other = made.workdir(tmp_path / "other", made.prefixes(3, 4, seed=1))
    written(one, other)
    opened(browser, tmp_path / "page.html")
    press(browser, "nn")
    heads = "return [...document.querySelectorAll('.side h3')].map(x => x.textContent)"
    assert browser.execute_script(heads) == [f"{x} sip_learned, step 10, row 2" for x in "AB"]
    prompts = "return [...document.querySelectorAll('.side > .prompt')].map(x => x.textContent)"
    assert len(set(browser.execute_script(prompts))) == 1
    put(browser, run="B sip_learned")
    assert text(browser, "#count").startswith("12 of 24")


def test_two_runs_of_a_workdir_are_compared_side_by_side(browser, tmp_path):
    workdir = made.workdir(tmp_path / "w", made.prefixes(2, 3))
    theirs = [x for x in made.prefixes(2, 3, seed=1) if x["row"] != 1]
    made.write_lines(workdir / "runs" / "sip_oracle" / "candidates.jsonl", theirs)
    written(workdir)
    opened(browser, tmp_path / "page.html")
    heads = "return [...document.querySelectorAll('.side h3')].map(x => x.textContent)"
    assert browser.execute_script(heads) == ["sip_learned, step 10, row 0"]
    put(browser, **{"with": "sip_oracle"})
    for at, there in ((0, True), (1, False), (2, True)):
        other = [f"sip_oracle, step 10, row {at}"] * there
        assert browser.execute_script(heads) == [f"sip_learned, step 10, row {at}", *other]
        assert ("has not logged this prefix" in text(browser, "#detail")) == (not there)
        press(browser, "n")
    assert "with=sip_oracle" in browser.execute_script("return location.hash")
    put(browser, run="sip_oracle")  # beside itself is nothing
    assert browser.execute_script(heads) == ["sip_oracle, step 10, row 0"]


def test_ratings_are_of_texts_and_not_of_their_place(browser, tmp_path):
    workdir = made.workdir(tmp_path / "w", made.prefixes(1, 2))
    written(workdir)
    opened(browser, tmp_path / "page.html")
    press(browser, "jb" + "jjw" + "n" + "jb" + "jw")
    assert text(browser, "#rated") == "2"
    lines = made.prefixes(1, 2)
    lines[0]["candidates"][5]["text"] += " other"  # the run was trained again
    made.workdir(tmp_path / "w", lines)
    written(workdir)
    opened(browser, tmp_path / "page.html")
    assert text(browser, "#rated") == "1" and "rated" not in text(browser, ".item.here b")


def test_hostile_texts_are_shown_and_do_nothing(browser, tmp_path):
    hostile(tmp_path / "w")
    written(tmp_path / "w")
    opened(browser, tmp_path / "page.html")
    shown = "return document.querySelector('.side .card .text').textContent.toWellFormed()"
    for i, wanted in enumerate(made.HOSTILE):
        browser.execute_script("document.querySelectorAll('details').forEach(x => x.open = true)")
        said = browser.execute_script(shown)
        if wanted.isprintable() and not set(wanted) & set(HIDDEN):
            assert said == wanted, i
        assert not any(c in said for c in HIDDEN), i
        for c in set(wanted) & set(HIDDEN):
            assert f"U+{ord(c):04X}" in said, (i, c)
        press(browser, "n")
    assert browser.execute_script("return window.hacked") is None
    bad = "return document.querySelectorAll('main img, iframe, base, object, meta[url]').length"
    assert browser.execute_script(bad) == 0
    assert browser.execute_script("return document.scripts.length") in (3, 4)  # with Plotly's
    assert browser.execute_script("return document.title").startswith("sip report")


def test_curves_are_drawn_when_they_come_into_view(browser, tmp_path):
    made_of = made.workdir(tmp_path / "w", made.prefixes(1, 1))
    written(made_of)
    opened(browser, tmp_path / "page.html")
    browser.execute_script("document.getElementById('curves').scrollIntoView()")
    drawn = "return document.querySelectorAll('#curves .main-svg').length"
    assert wait(lambda: browser.execute_script(drawn)) >= 1
    lines_of = "return document.querySelectorAll('#curves .scatterlayer .trace').length"
    assert wait(lambda: browser.execute_script(lines_of)) >= 1


def test_a_phone_and_dark_mode(browser, many):
    size(browser, 390, 844)
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    opened(browser, many)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, back[4:-1].split(","))) < 150
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
