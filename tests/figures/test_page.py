"""Browser tests of the page: it shows the values that NumPy computes from the same records."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import small_networks
from etils import epath

from multipath_jax.config.keys import default_config
from multipath_jax.data import Description
from multipath_jax.data.datasets import Split
from multipath_jax.data.description import Examples
from multipath_jax.figures.explorer import Explored
from multipath_jax.figures.page import facts, write_page
from multipath_jax.gates import observe, outline
from multipath_jax.metrics_file import METRICS_FILE
from multipath_jax.runs import LoadedRun

CLASSES = ("ant", "<b>bee</b> & {{data}}", "</script><script>document.title = 'broken'</script>")
IMAGES, LABELS = small_networks.images(60), small_networks.labels(60)
BINS = 20
# The page stores numbers in units of 1/65,535, and prints gates to 3 and distances to 4 decimals.
GATE, DISTANCE = 0.0006, 0.0002


def start_browser(profile):
    """Starts the system's Chromium and driver, headless, without downloads or usage reports."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no browser: needs chromium and chromedriver, as Debian packages them")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "force-device-scale-factor=1",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ |= {"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = start_browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


def measured(epoch):
    """The line of metrics.jsonl for an epoch."""
    routing = {"routing/router_1/entropy": 0.5, "routing/router_1/share_1": 0.25}
    values = {"step": 10 * epoch, "epoch": float(epoch), "train/loss": 1 / epoch, "seconds": 7.0}
    return values | routing | {"test/error": None if epoch == 3 else 10.0 + (epoch - 2) ** 2}


def as_run(trained, workdir):
    """A run of a tiny network, with metrics of four epochs."""
    config = default_config()
    config.model.name, config.dataset.name = "Tiny", "<noise>"
    shape, none = (8, 8, 2), Examples(0, "")
    description = Description(
        "noise", CLASSES, shape, shape, "uint8", small_networks.MEAN, small_networks.STD, none, none
    )
    lines = (json.dumps(measured(epoch)) + "\n" for epoch in range(1, 5))
    (workdir / METRICS_FILE).write_text("".join(lines))
    return LoadedRun(epath.Path(workdir), config, 40, trained.model, trained.variables, description)


@pytest.fixture(scope="module")
def observation():
    return observe(small_networks.network(), IMAGES)


@pytest.fixture(scope="module")
def write(tmp_path_factory, observation):
    """A function that writes a page with the given number of images, and returns its address."""

    def page(count=60):
        folder, trained = tmp_path_factory.mktemp("run"), small_networks.network()
        run = as_run(trained, folder)
        explored = Explored(
            outline(trained, (8, 8, 2)), observation, Split(IMAGES, LABELS), CLASSES
        )
        write_page(folder / "report.html", run, explored, [], count)
        return (folder / "report.html").as_uri()

    return page


class Page:
    """A page in the browser, and the actions of a user."""

    def __init__(self, driver, address):
        from selenium.webdriver.support.wait import WebDriverWait

        self.driver = driver
        driver.set_window_size(1280, 900)
        driver.get("about:blank")  # otherwise, a change of the fragment only would not reload
        driver.get_log("browser")
        driver.get(address)
        ready = "return document.documentElement.dataset.ready"
        WebDriverWait(driver, 20).until(lambda driver: driver.execute_script(ready))

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def run(self, script):
        return self.driver.execute_script(f"return {script}")

    def texts(self, selector):
        return self.run(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")

    def attributes(self, selector, name):
        return self.run(
            f"[...document.querySelectorAll({selector!r})].map(e => e.getAttribute({name!r}))"
        )

    def choose(self, number):
        field = self.one("#number")
        field.clear()
        field.send_keys(f"{number}\n")

    def select(self, selector, text):
        from selenium.webdriver.support.ui import Select

        Select(self.one(selector)).select_by_visible_text(text)

    @property
    def number(self):
        return int(self.one("#number").get_property("value"))

    @property
    def errors(self):
        return self.driver.get_log("browser")


@pytest.fixture(scope="module")
def whole(browser, write):
    """The browser, and the address of a page with all images that the tests share."""
    return browser, write()


@pytest.fixture
def page(whole):
    page = Page(*whole)
    yield page
    assert page.errors == []


def vectors(observation, router):
    return observation.routers[router].vectors


def test_the_gates_read_are_those_observed(page, observation):
    for number in (0, 17, 59):
        page.choose(number)
        assert f"Image {number} is {CLASSES[LABELS[number]]}" in page.one("#verdict").text
        expected = np.concatenate([vectors(observation, router)[number] for router in (0, 1)])
        shown = [float(text) for text in page.texts("#gates tbody td:last-child")]
        np.testing.assert_allclose(shown, expected, atol=GATE)
        drawn = [float(text) for text in page.attributes("#route circle.gate", "fill-opacity")]
        np.testing.assert_allclose(drawn, expected, atol=1e-5)
    assert page.texts("#gates tbody td:nth-child(3)") == ["g₁₁", "g₁₂", "g₁₁", "g₁₂", "g₂₁", "g₂₂"]


def test_tensors_are_as_red_as_they_are_strong(page, observation):
    page.choose(5)
    router = observation.routers[1]
    shares = [s[:, 5] / s[:, 5].sum() for s in (router.input_strength, router.output_strength)]
    reds = [float(text) for text in page.attributes("#route rect.tensor", "fill-opacity")]
    np.testing.assert_allclose(reds[-4:], np.concatenate(shares), atol=1e-4)  # 0.5: equally strong


def test_pointing_at_a_gate_says_its_value(page, observation):
    from selenium.webdriver.common.action_chains import ActionChains

    page.choose(9)
    ActionChains(page.driver).move_to_element(page.all("#route circle.gate")[3]).perform()
    says = page.one("#reading").text
    assert says.startswith("router 2, gate g₁₂ (input 1 to output 2): ")
    assert float(says.split()[-1]) == pytest.approx(observation.routers[1].gates[0, 9, 1], abs=GATE)


def test_the_picture_is_the_image(page):
    page.choose(11)
    pixels = page.run(
        "[...document.querySelector('#picture canvas').getContext('2d')"
        ".getImageData(0, 0, 8, 8).data]"
    )
    grey = IMAGES[11, ..., 0]  # the second of two channels is read as transparency
    np.testing.assert_array_equal(np.reshape(pixels, (8, 8, 4))[..., 0], grey)


@pytest.mark.parametrize("router", ["router 1", "router 2", "all"])
@pytest.mark.parametrize("metric", ["Euclidean", "cosine"])
def test_the_nearest_are_the_nearest(page, observation, router, metric):
    page.choose(23)
    page.select("#depth", router if router != "all" else "all routers together")
    page.select("#metric", metric)
    numbers = (0, 1) if router == "all" else (int(router[7]) - 1,)
    rows = np.concatenate([vectors(observation, number) for number in numbers], axis=1)
    distances = np.linalg.norm(rows - rows[23], axis=1)
    if metric == "cosine":
        distances = 1 - rows @ rows[23] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[23])
    order = np.delete(np.arange(60), 23)
    order = order[np.argsort(distances[order], kind="stable")][:12]
    shown = [int(text) for text in page.attributes("#nearest button", "data-number")]
    # Images whose distances are equal to about 1e-4 may be swapped.
    np.testing.assert_allclose(distances[shown], distances[order], atol=DISTANCE)
    assert len(set(shown)) == 12
    assert 23 not in shown
    printed = [float(text.split()[-1]) for text in page.texts("#nearest button span:last-child")]
    np.testing.assert_allclose(printed, distances[shown], atol=DISTANCE)
    same = (LABELS[shown] == LABELS[23]).sum()
    assert page.one("#agreement").text.startswith(f"{same} of the 12 nearest")


def test_histograms_count_what_numpy_counts(page, observation):
    page.select("#gate", "g₂₁ of router 2")
    gates = observation.routers[1].gates[1, :, 0]
    shown = {}
    for label in page.attributes("#histograms svg", "aria-label"):
        name, counts = label.split(": images in 20 bins from 0 to 1: ")
        shown[name] = [int(count) for count in counts.split()]
    assert shown == {
        name: np.histogram(gates[label == LABELS], BINS, (0, 1))[0].tolist()
        for label, name in enumerate(CLASSES)
    }
    means = [gates[label == LABELS].mean() for label in range(3)]
    names = page.texts("#histograms figcaption strong")
    assert names == [CLASSES[label] for label in np.argsort(means)]


def test_the_gate_picked_first_differs_most_between_images(page, observation):
    router, i, j = map(int, page.one("#gate").get_property("value").split(":"))
    deviations = [record.gates.std(axis=1) for record in observation.routers]
    assert deviations[router][i, j] == max(map(np.max, deviations))


def test_clicking_a_gate_picks_it(page):
    page.all("#route circle.gate")[4].click()
    assert page.one("#gate").get_property("value") == "1:1:0"
    assert page.one("#depth").get_property("value") == "1"
    assert len(page.all("#route circle.picked")) == 1


def test_images_are_found_by_class_and_by_error(page, observation):
    wrong = observation.logits.argmax(-1) != LABELS
    page.select("#class", "ant")
    page.one("#wrong").click()
    fitting = np.flatnonzero((LABELS == 0) & wrong)
    assert len(fitting) > 2  # otherwise, there would be no images to step through
    seen = [page.number]
    for _ in fitting:
        page.one("#next").click()
        seen.append(page.number)
    assert seen == [*fitting, fitting[0]]
    assert page.one("#position").text == f"1 of {len(fitting)}"
    assert "wrong" in page.one("#verdict").text
    page.one("#random").click()
    assert page.number in fitting[1:]


def test_arrow_keys_go_through_the_images(page):
    page.choose(30)
    body = page.one("#previous")
    body.send_keys("\ue014")  # right arrow
    assert page.number == 31
    body.send_keys("\ue012\ue012")  # left arrow, twice
    assert page.number == 29


def test_an_address_with_an_image_begins_there(browser, whole):
    page = Page(browser, f"{whole[1]}#image=42")
    assert page.number == 42


def test_nothing_is_loaded_and_no_text_becomes_markup(page):
    assert page.driver.title == "Tiny on <noise>"
    loaded = page.run("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert not page.all("b")
    assert CLASSES[1] in page.texts("#class option")


def test_facts_and_curves(page):
    facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert facts["final test error"] == "14.00 % (epoch 4)"
    assert facts["best test error"] == "10.00 % (epoch 2)"
    charts = page.attributes("#charts svg[role=img]", "aria-label")
    assert charts == [
        "Loss: training 0.25 at the end",
        "Error (%): test 14 at the end",
        "Entropy of the gates (1: even, 0: hard): router 1 0.5 at the end",
        "Share of each output path, router 1: path 1 0.25 at the end",
    ]


def test_facts_of_a_run_on_held_out_images_and_beyond_the_paper(tmp_path):
    run = as_run(small_networks.without_routers(), tmp_path)
    run.config.update_from_flattened_dict(
        {
            "dataset.holdout": 50,
            "dataset.shift": 3,
            "dataset.shift_mode": "reflect",
            "dataset.flip": True,
            "dataset.alternate_flip": True,
            "dataset.cutout": 8,
            "cutmix": 1.0,
            "schedule.kind": "linear",
            "schedule.warmup": "2 epochs",
        }
    )
    lines = [{"epoch": 1.0, "held_out/error": 20.0}, {"epoch": 2.0, "held_out/error": 30.0}]
    found = facts(run, lines)
    assert found["held-out images"] == "50 training images, in place of the test split"
    assert found["final held-out error"] == "30.00 % (epoch 2)"
    assert found["best held-out error"] == "20.00 % (epoch 1)"
    assert found["learning rate"] == (
        "0.1, after a warm-up of 2 epochs, falling to zero in a straight line"
    )
    assert found["augmentation"] == (
        "shift of up to 3 px by reflection, mirrored in every other epoch, cutout of 8 px, "
        "cutmix of 1"
    )


def test_facts_of_another_optimizer_and_of_fine_tuning(tmp_path):
    run = as_run(small_networks.without_routers(), tmp_path)
    assert facts(run, [])["momentum"] == "0.9"
    assert "initial weights" not in facts(run, [])
    run.config.update_from_flattened_dict(
        {
            "optimizer.name": "adamw",
            "optimizer.options": "b2=0.95",
            "init_from": f"{tmp_path}/resnet20.safetensors",
            "ema": 0.999,
            "accumulate": 2,
            "label_smoothing": 0.1,
            "finetune.layer_decay": 0.7,
            "finetune.frozen": "stem",
        }
    )
    found = facts(run, [])
    assert found["optimizer"] == "adamw b2=0.95"
    assert found["weight decay"] == "0.0005"
    assert not [title for title in found if "momentum" in title]
    assert found["initial weights"] == "resnet20.safetensors"
    options = ("ema", "accumulate", "label_smoothing", "finetune.layer_decay", "finetune.frozen")
    assert [found[name] for name in options] == ["0.999", "2", "0.1", "0.7", "stem"]
    run.config.optimizer.name = "own:optimizer"
    assert not {"learning rate", "weight decay"} & facts(run, []).keys()


def test_facts_of_weights_from_elsewhere_have_no_training(tmp_path):
    run = dataclasses.replace(as_run(small_networks.without_routers(), tmp_path), step=0)
    run.config.init_from = f"{tmp_path}/resnet20.safetensors"
    found = facts(run, [])
    assert found["weights"] == "resnet20.safetensors, not trained further"
    assert not {"trained for", "learning rate", "optimizer", "augmentation", "seed"} & found.keys()


def test_the_best_error_is_not_of_soft_steps(tmp_path):
    run = as_run(small_networks.without_routers(), tmp_path)
    lines = [{"epoch": 1.0, "test/error": 5.0, "soft": 1.0}, {"epoch": 2.0, "test/error": 9.0}]
    assert facts(run, lines)["best test error"] == "9.00 % (epoch 2)"
    assert "best test error" not in facts(run, lines[:1])


def test_it_fits_a_phone(page):
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        assert page.run("innerWidth") == 390
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run("document.querySelector('#route').scrollWidth") > 390  # scrolls separately
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_fewer_images_than_the_split_has(browser, write):
    page = Page(browser, write(count=7))
    assert "7 of the 60 test images" in page.one("#scope").text
    page.choose(22)
    assert page.number == 20  # nearest of 0, 10, 20, 30, 39, 49, 59
    assert page.one("#position").text == "22 is not on this page; the nearest is shown"
    assert page.errors == []


def test_a_network_without_routers_has_no_explorer(browser, tmp_path):
    run = as_run(small_networks.without_routers(), tmp_path)
    write_page(tmp_path / "report.html", run, None, [])
    page = Page(browser, (tmp_path / "report.html").as_uri())
    assert page.one("#explorer").text.endswith("This network has no routers.")
    assert page.errors == []
