"""What Debian's Chromium makes of a report; slow."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_runs import HOSTILE, read_page
from helpers.tiny import skip_figures


@pytest.fixture(autouse=True)
def few_resamples_and_no_figures(few_resamples: None, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_figures(monkeypatch)


class TestBrowser:
    """What Debian's Chromium makes of it; slow."""

    pytestmark = [
        pytest.mark.slow,
        pytest.mark.skipif(
            not (shutil.which("chromium") and shutil.which("chromedriver")),
            reason="needs chromium and chromedriver",
        ),
    ]

    @pytest.fixture(scope="class")
    def browser(self) -> Iterator[Any]:
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
    def opened(self, browser: Any, page: Path) -> Any:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(page.as_uri())
        return browser

    @staticmethod
    def ids(browser: Any) -> list[str]:
        script = "return [...document.querySelectorAll('#cards .id')].map((x) => x.textContent)"
        return browser.execute_script(script)

    @staticmethod
    def choose(browser: Any, name: str, value: str) -> None:
        browser.execute_script(
            "const x = document.querySelector(arguments[0]); x.value = arguments[1];"
            "x.dispatchEvent(new Event('change'))",
            *(f"#{name}", value),
        )

    @staticmethod
    def press(browser: Any, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(browser).send_keys(*keys).perform()

    def test_order_filter_and_row(self, opened: Any, page: Path) -> None:
        cases = read_page(page)["gallery"]["cases"]

        def ordered(row: str, *diagnoses: str) -> list[str]:
            own = [c for c in cases if not diagnoses or c["diagnosis"] in diagnoses]
            return [c["id"] for c in sorted(own, key=lambda c: (c["rows"][row]["dice"], c["id"]))]

        assert self.ids(opened) == ordered("0")
        self.choose(opened, "row", "1")
        assert self.ids(opened) == ordered("1")
        score = opened.find_element("css selector", "#cards .score").text
        assert score == f"{min(c['rows']['1']['dice'] for c in cases):.3f}"
        self.choose(opened, "diagnosis", "is melanoma")
        assert self.ids(opened) == ordered("1", "melanoma")
        count = opened.find_element("id", "count").text
        assert count == f"{len(ordered('1', 'melanoma'))} of 12 cases"
        self.choose(opened, "diagnosis", "all")
        self.choose(opened, "order", "id")
        assert self.ids(opened) == sorted(c["id"] for c in cases)
        self.choose(opened, "order", "diagnosis")
        key = {c["id"]: c["diagnosis"] for c in cases}
        found = [key[id] for id in self.ids(opened)]
        assert found == sorted(found)
        rows = read_page(page)["gallery"]["rows"]
        self.choose(opened, "order", f"{rows[1]['label']} better than {rows[0]['label']}")
        gain = {c["id"]: c["rows"]["1"]["dice"] - c["rows"]["0"]["dice"] for c in cases}
        assert self.ids(opened) == sorted(gain, key=lambda id: (-gain[id], id))

    def test_keyboard(self, opened: Any, page: Path) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        cards = {card["id"]: card for card in read_page(page)["gallery"]["cases"]}
        ids = self.ids(opened)

        def focused() -> str:
            return opened.execute_script(
                "return document.activeElement.querySelector('.id')?.textContent"
            )

        def source(where: str) -> str:
            found = opened.find_element("css selector", f"{where} img")
            assert found.get_attribute("alt")
            return found.get_attribute("src")

        opened.execute_script("document.querySelector('#kind').focus()")
        self.press(opened, "\ue004")  # Tab
        assert focused() == ids[0]
        self.press(opened, "\ue014", "\ue014", "\ue012")  # right, right, left
        assert focused() == ids[1]
        self.press(opened, "3")
        assert source("#cards li:nth-child(2)") == cards[ids[1]]["rows"]["0"]["target"]
        self.press(opened, "\ue007")  # Enter
        dialog = opened.find_element("css selector", "dialog")
        assert dialog.get_attribute("open") is not None
        assert opened.find_element("id", "case-title").text == ids[1]
        assert source(".big") == cards[ids[1]]["rows"]["0"]["target"]
        self.press(opened, "d")
        assert source(".big") == cards[ids[1]]["rows"]["0"]["prediction"]
        self.press(opened, "5", "\ue014")
        assert opened.find_element("id", "case-title").text == ids[2]
        assert source(".big") == cards[ids[2]]["rows"]["0"]["errors"]
        opened.find_elements("css selector", ".scores button")[1].click()
        assert opened.find_element("id", "case-title").text == ids[2]
        assert source(".big") == cards[ids[2]]["rows"]["1"]["errors"]
        assert opened.find_element("id", "row").get_property("value") == "1"
        opened.find_elements("css selector", ".scores button")[0].click()
        assert source(".big") == cards[ids[2]]["rows"]["0"]["errors"]
        scores = opened.find_elements("css selector", ".scores tbody td")
        expected = [f"{cards[ids[2]]['rows'][row]['dice']:.3f}" for row in "01"]
        assert [score.text for score in scores] == expected
        self.press(opened, "1")
        outlines = opened.find_elements("css selector", ".big svg path:not(.under)")
        own = cards[ids[2]]["rows"]["0"]
        drawn = [own["target_outlines"], own["prediction_outlines"]]
        assert [line.get_attribute("d") for line in outlines] == [path for (path,) in drawn]
        self.press(opened, "\ue00c")  # Esc
        assert dialog.get_attribute("open") is None
        WebDriverWait(opened, 10).until(lambda _: focused() == ids[2])
        ring = "return getComputedStyle(document.activeElement.closest('li')).outlineStyle"
        assert opened.execute_script(ring) == "solid"

    def test_mouse(self, opened: Any, page: Path) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        card = next(
            c for c in read_page(page)["gallery"]["cases"] if c["id"] == self.ids(opened)[0]
        )
        frame = opened.find_element("css selector", "#cards .frame")
        parts = frame.find_elements("css selector", ".strip span")
        image = frame.find_element("css selector", "img")
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
        ActionChains(opened).move_to_element(parts[3]).perform()
        assert image.get_attribute("src") == card["rows"]["0"]["errors"]
        title = opened.find_element("css selector", "h1")
        opened.execute_script("arguments[0].scrollIntoView()", title)
        ActionChains(opened).move_to_element(title).perform()
        assert image.get_attribute("src") == card["image"]
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
        frame.click()
        assert opened.find_element("id", "case-title").text == card["id"]

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_contrast_and_width(self, opened: Any, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

        def luminance(css: str) -> float:
            rgb = np.array([int(n) for n in re.findall(r"\d+", css)[:3]]) / 255
            linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            return float(linear @ [0.2126, 0.7152, 0.0722])

        def style(selector: str, name: str) -> str:
            return opened.execute_script(
                "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
                *(selector, name),
            )

        page = luminance(style("body", "backgroundColor"))
        assert (page < 0.1) == (scheme == "dark")
        texts = ("body", ".lead", "dt", "thead th", "summary", ".notes", "#cards .diagnosis")
        for selector in texts:
            light, dark = sorted([page, luminance(style(selector, "color"))], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, selector
        metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        opened.find_element("css selector", "#cards button").click()
        assert opened.execute_script("return document.documentElement.scrollWidth") == 390
        assert opened.execute_script("return document.querySelector('dialog').scrollWidth") <= 390
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def test_nothing_else_is_loaded_or_run(self, opened: Any, hostile: Path) -> None:
        for kind in ("outlines", "image", "target", "prediction", "errors"):
            self.choose(opened, "kind", kind)
        assert opened.get_log("browser") == []
        opened.get(hostile.as_uri())
        assert opened.find_element("css selector", "#cards .id").text.startswith(HOSTILE)
        assert HOSTILE in opened.find_element("css selector", "h1").text
        assert opened.execute_script("return document.querySelectorAll('img').length") == 0
        received_signal = [
            message["params"]["request"]["url"]
            for entry in opened.get_log("performance")
            if (message := json.loads(entry["message"])["message"])["method"]
            == "Network.requestWillBeSent"
        ]
        assert received_signal and all(
            url.startswith(("file:", "data:")) for url in received_signal
        )
        assert len([url for url in received_signal if url.startswith("file:")]) == 2
        # And what got in all the same would be refused.
        opened.execute_script(
            "document.body.innerHTML += '<img src=x onerror=\"window.hit = 1\">';"
            "const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
            "document.body.append(s)"
        )
        assert opened.execute_script("return window.hit ?? 0") == 0
        refused = [entry["message"] for entry in opened.get_log("browser")]
        assert len(refused) >= 2 and all("Content Security Policy" in line for line in refused)
