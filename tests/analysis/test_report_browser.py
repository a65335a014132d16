"""What Debian's Chromium makes of a report; slow."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_runs import HOSTILE, read_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("few_resamples"),
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs chromium and chromedriver",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1400,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    return browser


def listed(browser: Any) -> list[str]:
    script = "return [...document.querySelectorAll('#cards .id')].map((x) => x.textContent)"
    return browser.execute_script(script)


def choose(browser: Any, name: str, value: str) -> None:
    browser.execute_script(
        "const x = document.querySelector(arguments[0]); x.value = arguments[1];"
        "x.dispatchEvent(new Event('change'))",
        *(f"#{name}", value),
    )


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def test_order_filter_and_row(opened: Any, page: Path) -> None:
    gallery = read_page(page)["gallery"]
    cases, rows = gallery["cases"], gallery["rows"]

    def ordered(row: str, *diagnoses: str) -> list[str]:
        selected = [c for c in cases if not diagnoses or c["diagnosis"] in diagnoses]
        return [c["id"] for c in sorted(selected, key=lambda c: (c["rows"][row]["dice"], c["id"]))]

    assert listed(opened) == ordered("0")
    choose(opened, "row", "1")
    assert listed(opened) == ordered("1")
    score = opened.find_element("css selector", "#cards .score").text
    assert score == f"{min(c['rows']['1']['dice'] for c in cases):.3f}"
    choose(opened, "diagnosis", "is melanoma")
    assert listed(opened) == ordered("1", "melanoma")
    count = opened.find_element("id", "count").text
    assert count == f"{len(ordered('1', 'melanoma'))} of 12 cases"
    choose(opened, "diagnosis", "all")
    choose(opened, "order", "id")
    assert listed(opened) == sorted(c["id"] for c in cases)
    choose(opened, "order", "diagnosis")
    diagnosis = {c["id"]: c["diagnosis"] for c in cases}
    found = [diagnosis[id] for id in listed(opened)]
    assert found == sorted(found)
    choose(opened, "order", "confidence")
    confidence = {c["id"]: c["rows"]["1"]["confidence"] for c in cases}
    assert listed(opened) == sorted(confidence, key=lambda id: (confidence[id], id))
    choose(opened, "order", f"{rows[1]['label']} better than {rows[0]['label']}")
    gain = {c["id"]: c["rows"]["1"]["dice"] - c["rows"]["0"]["dice"] for c in cases}
    assert listed(opened) == sorted(gain, key=lambda id: (-gain[id], id))


def test_doubtful_outlines_open_their_cases(opened: Any, page: Path) -> None:
    doubtful = [cells[0] for cells in read_page(page)["doubtful"]["body"]]
    links = opened.find_elements("css selector", "#doubtful .link")
    assert [link.text for link in links] == doubtful
    choose(opened, "diagnosis", "is melanoma")  # does not stand in the way
    diagnosis = {c["id"]: c["diagnosis"] for c in read_page(page)["gallery"]["cases"]}
    number = next(i for i, id in enumerate(doubtful) if diagnosis[id] != "melanoma")
    opened.execute_script("arguments[0].click()", links[number])
    assert opened.find_element("id", "case-title").text == doubtful[number]


def test_keyboard(opened: Any, page: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    cards = {card["id"]: card for card in read_page(page)["gallery"]["cases"]}
    ids = listed(opened)

    def focused() -> str:
        return opened.execute_script(
            "return document.activeElement.querySelector('.id')?.textContent"
        )

    def source(where: str) -> str:
        found = opened.find_element("css selector", f"{where} img")
        assert found.get_attribute("alt")
        return found.get_attribute("src")

    opened.execute_script("document.querySelector('#kind').focus()")
    press(opened, "\ue004")  # Tab
    assert focused() == ids[0]
    press(opened, "\ue014", "\ue014", "\ue012")  # right, right, left
    assert focused() == ids[1]
    press(opened, "3")
    assert source("#cards li:nth-child(2)") == cards[ids[1]]["rows"]["0"]["target"]
    press(opened, "\ue007")  # Enter
    dialog = opened.find_element("css selector", "dialog")
    assert dialog.get_attribute("open") is not None
    assert opened.find_element("id", "case-title").text == ids[1]
    assert source(".big") == cards[ids[1]]["rows"]["0"]["target"]
    press(opened, "5", "\ue014")
    assert opened.find_element("id", "case-title").text == ids[2]
    assert source(".big") == cards[ids[2]]["rows"]["0"]["errors"]
    opened.find_elements("css selector", ".scores button")[1].click()
    assert source(".big") == cards[ids[2]]["rows"]["1"]["errors"]
    assert opened.find_element("id", "row").get_property("value") == "1"
    scores = opened.find_elements("css selector", ".scores tbody td")
    expected = [
        f"{cards[ids[2]]['rows'][row][name]:.3f}" for row in "01" for name in ("dice", "confidence")
    ]
    assert [score.text for score in scores] == expected
    press(opened, "1")
    outlines = opened.find_elements("css selector", ".big svg path:not(.under)")
    result = cards[ids[2]]["rows"]["1"]
    drawn = [result["target_outlines"], result["prediction_outlines"]]
    assert [line.get_attribute("d") for line in outlines] == [path for (path,) in drawn]
    press(opened, "\ue00c")  # Esc
    assert dialog.get_attribute("open") is None
    WebDriverWait(opened, 10).until(lambda _: focused() == ids[2])


def test_mouse_and_a_narrow_screen(opened: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    first = listed(opened)[0]
    card = next(c for c in read_page(page)["gallery"]["cases"] if c["id"] == first)
    frame = opened.find_element("css selector", "#cards .frame")
    parts = frame.find_elements("css selector", ".strip span")
    image = frame.find_element("css selector", "img")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
    ActionChains(opened).move_to_element(parts[3]).perform()
    assert image.get_attribute("src") == card["rows"]["0"]["errors"]
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    opened.find_element("css selector", "#cards button").click()
    assert opened.find_element("id", "case-title").text == first
    assert opened.execute_script("return document.documentElement.scrollWidth") == 390
    assert opened.execute_script("return document.querySelector('dialog').scrollWidth") <= 390
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_else_is_loaded_or_run(opened: Any, hostile: Path) -> None:
    for kind in ("outlines", "image", "target", "prediction", "errors"):
        choose(opened, "kind", kind)
    assert opened.get_log("browser") == []
    opened.get(hostile.as_uri())
    assert opened.find_element("css selector", "#cards .id").text.startswith(HOSTILE)
    assert HOSTILE in opened.find_element("css selector", "h1").text
    assert opened.execute_script("return document.querySelectorAll('img').length") == 0
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert all(url.startswith(("file:", "data:")) for url in urls)
    assert len([url for url in urls if url.startswith("file:")]) == 2
    # And what got in all the same would be refused.
    opened.execute_script(
        "document.body.innerHTML += '<img src=x onerror=\"window.hit = 1\">';"
        "const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        "document.body.append(s)"
    )
    assert opened.execute_script("return window.hit ?? 0") == 0
    refused = [entry["message"] for entry in opened.get_log("browser")]
    assert len(refused) >= 2 and all("Content Security Policy" in line for line in refused)
