"""The page over HTTP: beside the metrics, behind their password, read-only."""

import contextlib
import gzip
import json
import re
import urllib.error
import urllib.request

from tests.worldloom_dist.browser import drawn, needs_browser
from tests.worldloom_dist.written_runs import write_run
from worldloom_dist.metrics.endpoint import serve
from worldloom_dist.metrics.hub import MetricsHub
from worldloom_dist.page import app
from worldloom_dist.page.app import PageApp, page_html


@contextlib.contextmanager
def served(folder, secret=""):
    server, port = serve(MetricsHub("r1"), "127.0.0.1", 0, secret, PageApp(folder))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        server.server_close()


def ask(url, method="GET", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, headers=names, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_page_numbers_and_videos_are_served_beside_the_metrics(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "videos").mkdir()
    (folder / "videos" / "best-0.gif").write_bytes(bytes(range(100)))
    with served(folder) as url:
        code, headers, body = ask(url + "/")
        assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert body.decode() == page_html()
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        code, headers, body = ask(url + "/run.json")
        assert json.loads(body)["run"]["name"] == "run"
        assert ask(url + "/run.json", If_None_Match=headers["ETag"])[0] == 304
        squeezed = ask(url + "/run.json", Accept_Encoding="gzip")[2]
        assert json.loads(gzip.decompress(squeezed))["run"]["name"] == "run"
        code, headers, body = ask(url + "/videos/best-0.gif")
        assert (code, headers["Content-Type"], body) == (200, "image/gif", bytes(range(100)))
        code, headers, body = ask(url + "/videos/best-0.gif", Range="bytes=90-")
        assert (code, headers["Content-Range"], body) == (
            206,
            "bytes 90-99/100",
            bytes(range(90, 100)),
        )
        assert ask(url + "/videos/best-0.gif", Range="bytes=-5")[2] == bytes(range(95, 100))
        assert ask(url + "/videos/best-0.gif", Range="bytes=100-")[0] == 416
        assert b"worldloom_run_info" in ask(url + "/metrics")[2]
        assert ask(url + "/", "HEAD")[2] == b""


def test_nothing_else_of_the_folder_is_served_and_nothing_is_taken(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "videos").mkdir()
    (folder / "videos" / "index.jsonl").write_text("{}")
    (folder / "videos" / "link.gif").symlink_to(folder / "config.json")
    with served(folder) as url:
        for path in (
            "config.json",
            "videos/",
            "videos/../config.json",
            "videos/%2e%2e%2fconfig.json",
            "videos/index.jsonl",
            "videos/link.gif",
            "run.json/",
        ):
            assert ask(f"{url}/{path}")[0] == 404, path
        for method in ("POST", "PUT", "DELETE"):
            assert ask(url + "/run.json", method)[0] == 404


def test_nothing_is_shown_that_a_link_in_the_folder_leads_to(tmp_path):
    folder = write_run(tmp_path / "run")
    (tmp_path / "mine.txt").write_text("first\nmy own secret\n")
    for name in ("console.log", "command.txt", "versions.txt"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "mine.txt")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "best-0.gif").write_bytes(b"GIF89a my own")
    (folder / "videos").symlink_to(tmp_path / "films")
    with served(folder) as url:
        assert b"my own" not in ask(url + "/run.json")[2]
        assert ask(url + "/videos/best-0.gif")[0] == 404


def test_numbers_and_names_that_are_too_long_are_no_fault_of_ours(tmp_path, caplog):
    folder = write_run(tmp_path / "run")
    (folder / "videos").mkdir()
    (folder / "videos" / "best-0.gif").write_bytes(bytes(100))
    with served(folder) as url:
        video = url + "/videos/best-0.gif"
        for said in ("bytes=" + "9" * 5000 + "-", "bytes=-" + "9" * 5000):
            assert ask(video, Range=said)[0] == 200, "what is no range is not looked at"
        assert ask(video, Range="bytes=" + "9" * 18 + "-")[0] == 416
        assert ask(url + "/videos/" + "a" * 5000 + ".gif")[0] == 404
        assert ask(url + "/videos/a%00.gif")[0] == 404
    assert not caplog.records


def test_no_page_of_the_web_may_show_what_is_served_here(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "videos").mkdir()
    (folder / "videos" / "best-0.gif").write_bytes(bytes(100))
    with served(folder) as url:
        for path in ("/", "/run.json", "/videos/best-0.gif", "/videos/none.gif"):
            assert ask(url + path)[1]["Cross-Origin-Resource-Policy"] == "same-origin", path


def test_the_password_of_the_metrics_guards_the_page(tmp_path):
    folder = write_run(tmp_path / "run")
    with served(folder, "user:s3cret-word") as url:
        for path in ("/", "/run.json", "/videos/x.gif"):
            code, headers, body = ask(url + path)
            assert code == 401
            assert headers["WWW-Authenticate"].startswith("Basic")
            assert b"run" not in body.split(b":", 1)[0]
        assert ask(url + "/run.json", Authorization="Basic dXNlcjpzM2NyZXQtd29yZA==")[0] == 200


def test_a_folder_that_cannot_be_read_is_said(tmp_path):
    with served(tmp_path / "nothing") as url:
        code, _, body = ask(url + "/run.json")
        assert code == 503
        assert b"cannot be read here" in body


def test_the_page_is_one_file_that_asks_no_one_else():
    html = page_html()
    outside = re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s'\"]+", html)
    assert not outside
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"'](?!data:)", html)
    assert "innerHTML" not in html, "texts of a run are never read as HTML"


@needs_browser
def test_a_browser_shows_the_run_that_it_asks_for(tmp_path):
    folder = write_run(tmp_path / "a-live-run", share=0.5)
    with served(folder) as url:
        text = drawn(url + "/", tmp_path)
    assert ">a-live-run</h1>" in text
    assert ">running</span>" in text
    assert "2,500 of 5,000 env steps" in text


@needs_browser
def test_a_browser_shows_several_tasks_and_their_score(tmp_path):
    last = {"sampled_windows_total{task=walk}": 30, "sampled_windows_total{task=run}": 10}
    last["task_return_mean{split=train,task=walk}"] = 123.0
    tasks = {"walk": {"return_mean": 456.0, "score": 45.6}, "run": {"return_mean": 20.0}}
    folder = write_run(tmp_path / "run", evaluations=False, last=last)
    config = json.loads((folder / "config.json").read_text())
    env = {"tasks": [{"name": name, "env": f"dmc:{name}"} for name in tasks]}
    (folder / "config.json").write_text(json.dumps({**config, "env": env}))
    summary = json.loads((folder / "summary.json").read_text())
    found = {"env_steps": 4000, "return_mean": 238.0, "return_std": 1.0, "episodes": 2}
    model = {"tasks": {name: {"windows": 4, "value_bias": 0.5} for name in tasks}}
    evaluation = {**found, "score": 32.8, "tasks": tasks, "model": model}
    (folder / "summary.json").write_text(json.dumps({**summary, "eval": evaluation}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "eval", "time": 1.8e9, **evaluation}) + "\n")
    with served(folder) as url:
        text = drawn(url + "/", tmp_path)
    row = text.partition(">walk</td>")[2].partition("</tr>")[0]
    assert [re.sub("<[^>]+>", "", cell) for cell in row.split("</td>")[:5]] == [
        "123",
        "456",
        "45.6",
        "\u2013",
        "75 %",
    ]
    assert "normalised score, mean over tasks" in text
    assert "Model on evaluation episodes" not in re.sub("(?s)<script.*?</script>", "", text)


def test_a_video_that_is_deleted_before_it_is_sent_is_not_found(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr(app, "video_path", lambda folder, name: folder / name)  # it was there
    with served(folder) as url:
        code, _, body = ask(url + "/videos/best-0.gif")
    assert (code, body) == (404, b"404 Not Found: there is no such video any more\n")


def test_a_video_that_is_deleted_while_it_is_sent_is_sent_whole(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "videos" / "best-0.gif"
    path.parent.mkdir()
    path.write_bytes(bytes(range(100)))
    environ = {"PATH_INFO": "/videos/best-0.gif"}
    body = PageApp(folder)(environ, lambda status, headers: None)
    path.unlink()
    try:
        assert b"".join(body) == bytes(range(100))
    finally:
        body.close()
