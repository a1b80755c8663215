"""Names that a terminal or a page would obey are shown as text, wherever they come out."""

import dataclasses
import io
import re
import sys
import unicodedata

import pytest
import rich
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

import convsim
from convsim.cli import console, main
from convsim.lab import presentation
from convsim.lab.presentation import HEADER, rows, write_comparison
from convsim.lab.summary import Estimate, Summary
from convsim.lab.tables import terminal_table
from convsim.lab.terminal import progress_bar
from convsim.visible import visible

HOSTILE = {
    "colour": "\x1b[31mevil\x1b[0m",
    "clear the screen": "\x1b[2J\x1b[1;1Hevil",
    "title of the window": "\x1b]0;evil\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\evil\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "8-bit controls": "\x9b31mevil\x9d0;evil\x9c",
    "device control": "\x1bP+q544e\x1b\\evil",
    "line breaks": "evil\r\nError: all is well\x0b\x0c\x85\u2028\u2029",
    "over itself": "good\b\b\b\bevil\x7f\x00",
    "right to left": "\u202egnp.live\u202c",
    "isolates": "\u2066evil\u2069\u200e\u200f\u061c",
    "nothing to see": "e\u200bv\u200ci\u200dl\u2060\ufeff\u00ad\u180e\u115f\u3164\u034f\ufe0f",
    "tags": "evil\U000e0065\U000e0076",
    "half a character": "evil\ud800",
    "markup of rich": "[bold red]evil[/] [/] \\[link=http://evil.example]evil :bomb:",
}
MARKUP = {
    "script": "</script><script>window.hacked=1</script>",
    "image": "<img src=http://127.0.0.1:9/x onerror=window.hacked=1>",
    "attribute": "\" onmouseover=window.hacked=1 autofocus onfocus='window.hacked=1'",
    "comment": "<!--<script>window.hacked=1//",
    "style": "</style><style>*{background:url(http://127.0.0.1:9/x)}</style>",
    "frame": "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "link": "<a href=javascript:window.hacked=1>x</a><meta http-equiv=refresh content='0;url=//x'>",
    "base": "<base href=http://127.0.0.1:9/><form action=//x><input type=submit>",
    "vector": "<svg onload=window.hacked=1><animate onbegin=window.hacked=1>",
    "entities": "&lt;b&gt; &amp;amp; &#x3c;script&#x3e;",
    "template": "${window.hacked=1} {{7*7}} `",
}  # fmt: skip


def assert_tame(text, *, of):
    """Check that nothing in a text is obeyed, and that what the name says is there."""
    for character in text.replace("\n", ""):
        assert unicodedata.category(character)[0] != "C", (character, text)
        assert character not in "\u2028\u2029\u115f\u3164\u034f\ufe0f"
    squeezed = re.sub(r"[\s│╭╰─╮╯]", "", text)
    assert re.sub(r"\s", "", visible(of)) in squeezed


@pytest.mark.parametrize("name", HOSTILE)
def test_visible(name):
    shown = visible(HOSTILE[name])
    assert_tame(shown, of=HOSTILE[name])
    assert "\n" not in shown
    assert visible(shown) == shown
    assert shown.encode().decode() == shown


def test_visible_keeps_what_can_be_seen():
    for text in ("", "layer1.0.conv2", "größer − ×", "名前", "עברית", "é", "[0]", "C:\\x"):
        assert visible(text) == text


def model_of(name):
    """A model with a layer of that name, which must hold no dot."""
    model = nn.Sequential()
    model.add_module(name.replace(".", "·"), nn.Conv2d(1, 3, 3))
    model.add_module("other", nn.Conv2d(3, 4, 3))
    return model


def shown(renderable):
    console = Console(file=io.StringIO(), width=2000, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


def report_of(name):
    torch.manual_seed(0)
    report = convsim.measure(model_of(name), [torch.randn(2, 1, 8, 8)])
    return dataclasses.replace(report, model=name.replace(".", "·"))


def summary(name):
    one = Estimate(0.5, 0.1, (0.4, 0.6))
    curve, layers = (0.1, 0.5), {name: 0.3}
    return Summary(name, 0.1, 0.05, one, one, 2.0, 2, one, one, False, 1.0, curve, layers)


@pytest.mark.parametrize("name", HOSTILE)
def test_tables(name):
    evil = HOSTILE[name].replace(".", "·")
    report = report_of(evil)
    comparison = terminal_table(HEADER, rows([summary(evil)]), title=evil)
    for table in (report, report.compare(report), comparison):
        assert_tame(shown(table), of=evil)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures(tmp_path):
    evil = r"$\frac{$ $\evil$ $x^$" + "\ud800\n\x1b[31m"
    report = report_of(evil)
    for figure in (report.figure(), report.layer_figure(evil)):
        figure.savefig(io.BytesIO(), dpi=20)
    write_comparison([summary("none")], evil, evil, tmp_path)
    for file in ("comparison.md", "comparison.html"):
        assert visible(evil) in (tmp_path / file).read_text("utf-8")


@pytest.mark.parametrize("name", HOSTILE)
def test_progress(name, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr(console, "talk", Console(stderr=True))
    for bar in (progress_bar(True), console.progress_bar()):
        with bar:
            bar.add_task(HOSTILE[name], total=3)
        err = capsys.readouterr().err
        assert visible(HOSTILE[name]) in err
        assert HOSTILE[name] not in err or name == "markup of rich"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


SMALL = ("measure", "cnn", "--width", "2", "--data", "digits", "--images", "10")
FACTORY = """
import torch
def network():
    model = torch.nn.Sequential()
    model.add_module({name!r}, torch.nn.Conv2d(1, 3, 3))
    return model
"""


@pytest.mark.parametrize("name", [n for n in HOSTILE if n != "half a character"])
def test_errors(run, name):
    evil = HOSTILE[name].replace("\0", "").replace("/", "·")
    commands = [
        ("measure", "cnn", "--data", evil),
        (*SMALL, "--weights", evil),
        (*SMALL, "--before", evil),
        ("measure", evil, "--data", "digits"),
        ("measure", evil.replace(".", "") + ":network", "--data", "digits"),
        (*SMALL, "--layers", evil),
        ("compare", "digits", "--out", "x", "--method", evil),
        ("train", "digits", "--out", "x", "--norm", evil),
        ("train", "digits", "--out", "x", evil),
        ("train", "digits", "--out", "x", f"--{evil}"),
        (evil,),
    ]
    for command in commands:
        code, out, err = run(*command)
        assert (code, out) == (2, ""), command
        assert_tame(err, of=visible(evil)[:4])


@pytest.mark.parametrize("name", HOSTILE)
def test_measure(run, tmp_path, name, monkeypatch):
    evil = HOSTILE[name].replace(".", "·")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_models.py").write_text(FACTORY.format(name=evil))
    sys.modules.pop("evil_models", None)
    measure = ("measure", "evil_models:network", *SMALL[4:], "--max-similarity", "0")
    code, out, err = run(*measure, "--html", "page.html", "--json", "report.json")
    assert code == 1
    assert_tame(out, of=visible(evil)[:8])
    assert_tame(err, of="The layers most alike")
    code, out, err = run(*measure, "--before", "report.json")
    assert code == (2 if name == "half a character" else 1)
    assert_tame(out + err, of="")


def test_files_of_such_names(run, tmp_path):
    for evil in (name.replace("/", "·") for name in HOSTILE.values() if "\0" not in name):
        folder = tmp_path / evil
        try:
            folder.mkdir()
        except UnicodeEncodeError:
            continue
        (folder / "train").mkdir()
        code, out, err = run("measure", "cnn", "--data", folder)
        assert (code, out) == (2, "")
        assert_tame(err, of="")
        assert visible(evil).replace(" ", "")[:6] in re.sub(r"\s", "", err)


# ------------------------------------------------------------------- on pages


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page offline; at the end, fail on what it said, asked for, or ran."""
    said, asked, pages = [], [], []
    context = browser.new_context(offline=True)

    def open_page(html):
        path = tmp_path / "opened.html"
        path.write_text(html, encoding="utf-8")
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    ran = [page.evaluate("window.hacked") for page in pages]
    context.close()
    assert said == []
    assert {url.rsplit("/", 1)[-1] for url in asked} <= {"opened.html"}
    assert ran == [None] * len(pages)


ALL = {**HOSTILE, **MARKUP}


def test_report_pages(opened):
    names = [name.replace(".", "·") for name in ALL.values()]
    one = report_of("x").layers[0]
    layers = tuple(dataclasses.replace(one, name=name, kind=name) for name in names)
    model = "".join(names)
    report = convsim.RedundancyReport(model, 1, layers, torch.zeros(0, 1, 1, 1).byte())
    for shown in (report, report.compare(report)):
        page = opened(shown.to_html())
        assert page.locator("#title").text_content() == f"Redundancy of {visible(model)}"
        assert page.title().startswith("Redundancy of ")
        rows, bars = page.locator("#layers tbody tr"), page.locator("#bars button")
        assert rows.count() == bars.count() == len(names)
        for number, name in enumerate(names):
            cells = rows.nth(number).locator("td").all_text_contents()
            assert [cells[0], cells[7]] == [visible(name)] * 2
            if shown is not report:
                continue
            bars.nth(number).hover()
            assert page.locator("#tip").text_content().startswith(visible(name))
            rows.nth(number).click()
            assert page.locator("#layer-title").text_content().startswith(visible(name))
        assert page.locator("#layer option").all_text_contents() == [*map(visible, names)]
        assert page.locator("img, iframe, svg, form, base, a, #layers i, #layers b").count() == 0


def test_comparison_pages(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(presentation, "figure", lambda *_: Figure())
    names = [visible(name) for name in ALL.values()]
    title = "".join(ALL.values())
    write_comparison([summary(name) for name in ("none", *names)], title, title, tmp_path)
    page = opened((tmp_path / "comparison.html").read_text("utf-8"))
    assert page.locator("h1").text_content() == visible(title)
    assert page.locator("tbody td:first-child").all_text_contents() == ["none", *names]
    assert page.locator("p").last.text_content() == visible(title)
    assert page.locator("iframe, svg, form, base, a, script").count() == 0
    assert page.locator("img").count() == page.locator("style").count() == 1
    assert page.locator("img").evaluate("image => image.naturalWidth") > 100
    collapse = page.locator("table").evaluate("t => getComputedStyle(t).borderCollapse")
    assert collapse == "collapse"  # the policy lets the page's own style in


def test_the_policy_would_stop_what_slips_through(browser, tmp_path):
    # A link is followed by who clicks on it, a refresh by no policy: these must not slip through.
    evil = "".join(text for name, text in MARKUP.items() if name not in ("link", "comment"))
    write_comparison([summary("none")], "x", "x", tmp_path)
    report = report_of("x").to_html()
    for html in (report, (tmp_path / "comparison.html").read_text("utf-8")):
        for kept in ("default-src 'none'", "base-uri 'none'", "form-action 'none'"):
            assert kept in html
        assert "unsafe" not in html
        context = browser.new_context(offline=True)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("requestfinished", lambda request, asked=asked: asked.append(request.url))
        path = tmp_path / "spoilt.html"
        path.write_text(html.replace("<body>", f"<body>{evil}"), "utf-8")
        page.goto(path.as_uri())
        page.wait_for_timeout(100)
        assert page.evaluate("window.hacked") is None
        assert any("Content Security Policy" in line for line in said)
        assert [url for url in asked if not url.startswith("file:")] == []
        context.close()


def test_rich_prints_a_report_as_text(capsys):
    rich.print(report_of("\x1b[31mevil"))
    assert "\x1b" not in capsys.readouterr().out
