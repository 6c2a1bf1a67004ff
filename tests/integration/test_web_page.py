"""The page is there soon, leaves the installed gradio as it is, and lets nothing heavy into its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import psutil

from tests.servers import clean_environment, web

HEALTH_CPU_S, PAGE_CPU_S = 6.0, 12.0  # twice what they take: processor seconds, so that a busy machine does not fail

IMPORT = """
import sys
written = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+") and "site-packages" in str(arguments[0]):
        written.append(str(arguments[0]))
sys.addaudithook(watch)
sys.dont_write_bytecode = True
from studio import settings, web
loaded = settings.load()
loaded.make_folders()
web._prepare_gradio(loaded)
import gradio
print(len(written), gradio.Textbox.change is not None, gradio.analytics.analytics_enabled())
"""


def test_importing_gradio_writes_nothing_beside_its_sources(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, env=clean_environment(tmp_path / "home"))
    assert done.stdout.split() == ["0", "True", "False"], done.stderr


def test_importing_the_web_module_changes_nothing(tmp_path: Path) -> None:
    code = "import os; before = dict(os.environ); import studio.web, threading; print(before == dict(os.environ), threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment(tmp_path / "home"))
    assert done.stdout.split() == ["True", "1"] and not (tmp_path / "home").exists()


def test_the_page_is_there_soon_is_light_and_ends_with_its_parent(tmp_path: Path) -> None:
    with web(tmp_path / "home") as server:
        process = psutil.Process(server.process.pid)
        used = process.cpu_times()
        assert used.user + used.system < HEALTH_CPU_S
        page = httpx.get(server.url, trust_env=False, timeout=120)
        used = process.cpu_times()
        assert page.status_code == 200 and "Adapter Studio" in page.text and used.user + used.system < PAGE_CPU_S
        assert not any("libtorch" in mapped.path for mapped in process.memory_maps())
        assert process.memory_info().rss < 400e6
        assert server.process.stdin
        server.process.stdin.close()
        server.process.wait(timeout=120)


def test_without_a_login_the_page_is_for_this_machine_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studio.web"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(tmp_path / "home", STUDIO_HOST="0.0.0.0"))
    assert done.returncode == 78 and "STUDIO_TOKEN" in done.stderr and len(done.stderr.splitlines()) == 1
