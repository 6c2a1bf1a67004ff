"""The door of the studio, knocked at over real HTTP: foreign pages and names, size, login, and what every answer carries."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.servers import Server, web

TOKEN = "a-token-for-tests"
CLIENT = "http://chat.example:3000"  # a page of another site whose scripts may use /v1 and /api
LIMIT = 300_000
# routes of ours and of gradio's: none may be open when a login is asked for
ROUTES = [
    ("GET", "/"),
    ("GET", "/api/docs"),
    ("GET", "/api/openapi.json"),
    ("GET", "/api/datasets"),
    ("POST", "/api/datasets"),
    ("GET", "/api/jobs"),
    ("POST", "/api/jobs"),
    ("GET", "/api/status"),
    ("GET", "/api/keys"),
    ("POST", "/api/keys"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/config"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/gradio_api/startup-events"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/queue/join"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("GET", "/theme.css"),
    ("GET", "/assets/index.js"),
    ("GET", "/no/such/route"),
    ("GET", "/health/../api/jobs"),
    ("GET", "//health"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio for this machine alone, without a login."""
    with web(tmp_path_factory.mktemp("open") / "home", STUDIO_MAX_UPLOAD_BYTES=str(LIMIT), STUDIO_LOCAL_TOKEN=TOKEN) as started:
        yield started


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio that others can reach, with a token and a user."""
    home = tmp_path_factory.mktemp("guarded") / "home"
    with web(
        home, STUDIO_HOST="0.0.0.0", STUDIO_TOKEN=TOKEN, STUDIO_USERS="anna:her password,ben:his", STUDIO_ALLOWED_ORIGINS=CLIENT
    ) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as made:
        yield made


@pytest.fixture
def stranger(guarded: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, trust_env=False, timeout=120) as made:
        yield made


def raw(server: Server, request: str) -> str:
    """The first line of the answer to bytes that no proper client would send."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
        connection.sendall(request.encode("latin-1"))
        return connection.recv(65536).decode("latin-1").split("\r\n")[0]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost.evil.example", "", "file://"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/jobs"), ("POST", "/api/jobs"), ("GET", "/health"), ("POST", "/gradio_api/queue/join"), ("OPTIONS", "/config")],
)
def test_a_foreign_page_is_refused_everywhere(client: httpx.Client, method: str, path: str, origin: str) -> None:
    answer = client.request(method, path, headers={"Origin": origin})
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_the_studios_own_page_and_programs_pass(client: httpx.Client, server: Server) -> None:
    assert client.get("/api/jobs", headers={"Origin": server.url}).status_code == 200
    assert client.get("/api/jobs").status_code == 200
    assert client.get("/api/jobs", headers={"Authorization": "Bearer anything at all"}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", "", "[::", "a@127.0.0.1.evil"],
)
def test_a_foreign_name_is_refused(client: httpx.Client, host: str) -> None:
    assert client.get("/api/jobs", headers={"Host": host}).status_code == 403


def test_every_name_of_this_machine_passes(client: httpx.Client) -> None:
    port = client.base_url.port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost"):
        assert client.get("/api/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/jobs", "/health", "/v1/models", "/no/such/route"])
def test_every_answer_forbids_foreign_code(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "object-src 'none'" in policy and "frame-ancestors 'self'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"


def test_a_large_upload_is_refused_by_its_length_and_while_it_comes(client: httpx.Client, server: Server) -> None:
    rows = b'{"prompt": "a", "completion": "b"}\n' * 60_000
    assert client.post("/api/datasets", files={"file": ("rows.jsonl", rows)}).status_code == 413
    assert client.post("/gradio_api/upload", files={"files": ("rows.jsonl", rows)}).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
        for _ in range(60):
            yield rows[:35_000]
        yield b"\r\n--x--\r\n"

    for path in ("/api/datasets", "/gradio_api/upload", "/api/jobs"):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        assert client.post(path, content=chunks(), headers=headers).status_code == 413
    assert client.get("/api/datasets").json() == []
    assert not [p for p in (server.home / "cache").rglob("*") if p.is_file()]


def test_a_large_json_body_is_refused(client: httpx.Client) -> None:
    assert client.post("/v1/chat/completions", content=b" " * (LIMIT + 1)).status_code == 413


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{home}/studio.db", "{home}/../home/studio.db", "//etc/passwd", "%2fetc%2fpasswd", "http://127.0.0.1:1/x"]
)
def test_files_of_the_machine_are_not_served(client: httpx.Client, server: Server, path: str) -> None:
    answer = client.get(f"/gradio_api/file={path.format(home=server.home)}")
    assert answer.status_code in (400, 403, 404) and b"root:" not in answer.content and b"SQLite format" not in answer.content


def test_the_login_page_is_all_that_a_stranger_sees(stranger: httpx.Client) -> None:
    answer = stranger.get("/?tab=jobs", headers={"Accept": "text/html"})
    assert answer.status_code == 303 and answer.headers["location"] == "/login?next=%2F%3Ftab%3Djobs"
    page = stranger.get(answer.headers["location"]).text
    assert '<form method="post" action="/login">' in page and 'value="/?tab=jobs"' in page


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_is_open_to_a_stranger(stranger: httpx.Client, method: str, path: str) -> None:
    answer = stranger.request(method, path)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"


def test_health_is_open_and_says_little(stranger: httpx.Client) -> None:
    assert set(stranger.get("/health").json()) == {"status", "version", "engine", "page"}


@pytest.mark.parametrize("host", ["x/health?", "x/health#", "127.0.0.1/health?x=", "x\\health"])
def test_a_made_up_host_does_not_change_what_is_asked_for(guarded: Server, host: str) -> None:
    line = raw(guarded, f"GET /api/jobs HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert " 401 " in line or " 400 " in line


def test_unauthorised_programs_get_the_shape_they_know(stranger: httpx.Client) -> None:
    assert stranger.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert set(stranger.get("/api/jobs").json()["error"]) == {"message", "fix"}


def test_the_token_and_a_made_key_let_programs_in(stranger: httpx.Client) -> None:
    owner = {"Authorization": f"Bearer {TOKEN}"}
    made = stranger.post("/api/keys", json={"name": "ci"}, headers=owner).json()
    program = {"Authorization": f"Bearer {made['key']}"}
    assert stranger.get("/v1/models", headers=program).status_code == 200
    assert made["key"] not in stranger.get("/api/keys", headers=owner).text
    stranger.delete(f"/api/keys/{made['id']}", headers=owner)
    assert stranger.get("/v1/models", headers=program).status_code == 401


def test_no_key_is_kept_as_it_is(stranger: httpx.Client, guarded: Server) -> None:
    made = stranger.post("/api/keys", json={"name": "kept"}, headers={"Authorization": f"Bearer {TOKEN}"}).json()
    kept = b"".join(file.read_bytes() for file in guarded.home.rglob("*") if file.is_file())
    assert made["key"].encode() not in kept and TOKEN.encode() not in kept


def test_the_printed_link_logs_in_once_and_hides_the_token(stranger: httpx.Client) -> None:
    answer = stranger.get("/", params={"tab": "jobs", "token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/?tab=jobs")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and TOKEN not in cookie
    assert stranger.get("/", headers={"Accept": "text/html"}).status_code == 200


def test_a_user_logs_in_and_out(stranger: httpx.Client) -> None:
    answer = stranger.post("/login", data={"name": "anna", "password": "her password", "next": "/?tab=chat"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/?tab=chat")
    assert stranger.get("/api/jobs").status_code == 200
    assert stranger.get("/login").headers["location"] == "/"
    cookies = dict(stranger.cookies)
    assert stranger.get("/logout").status_code == 405 and stranger.get("/api/jobs").status_code == 200
    assert stranger.post("/logout").headers["location"] == "/login"
    assert stranger.get("/api/jobs").status_code == 401
    stranger.cookies.update(cookies)
    assert stranger.get("/api/jobs").status_code == 401  # the cookie itself is dead, not only forgotten


def test_a_wrong_password_is_told_and_opens_nothing(stranger: httpx.Client) -> None:
    answer = stranger.post("/login", data={"name": "anna", "password": "<script>"})
    assert answer.status_code == 401 and "did not match" in answer.text and "set-cookie" not in answer.headers


def test_a_login_from_a_foreign_page_is_refused(stranger: httpx.Client) -> None:
    form = {"name": "anna", "password": "her password"}
    assert stranger.post("/login", data=form, headers={"Origin": "http://evil.example"}).status_code == 403


def test_two_people_have_two_sessions_and_see_their_own(guarded: Server) -> None:
    with (
        httpx.Client(base_url=guarded.url, trust_env=False, timeout=120) as anna,
        httpx.Client(base_url=guarded.url, trust_env=False) as ben,
    ):
        anna.post("/login", data={"name": "anna", "password": "her password"})
        ben.post("/login", data={"name": "ben", "password": "his"})
        assert list(anna.cookies.values()) != list(ben.cookies.values())
        listed = ben.get("/api/sessions").json()
        assert {one["person"] for one in listed} == {"ben"} and [one["is_current"] for one in listed].count(True) == 1
        (current,) = [one["id"] for one in listed if one["is_current"]]
        assert anna.delete(f"/api/sessions/{current}").status_code == 404
        owner = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.delete(f"{guarded.url}/api/sessions/{current}", headers=owner, trust_env=False).json()["ended"] is True
        assert ben.get("/api/jobs").status_code == 401 and anna.get("/api/jobs").status_code == 200


def routes_of(client: httpx.Client) -> list[tuple[str, str]]:
    """Every method and path of ours, as the running studio lists them."""
    paths = client.get("/api/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()["paths"]
    found = [(method.upper(), path.replace("{", "").replace("}", "")) for path, methods in paths.items() for method in methods]
    assert len(found) > 95
    return found


LIST = r"""
import json, re, gradio
from gradio.routes import App

def routes(of):
    for route in of:
        if hasattr(route, "path"):
            yield from ((method, re.sub(r"{(\w+)(:\w+)?}", r"\1", route.path)) for method in getattr(route, "methods", None) or ("GET", "POST"))
        else:
            yield from routes(route.original_router.routes)

print(json.dumps(sorted(routes(App.create_app(gradio.Blocks()).routes))))
"""


def gradios() -> list[tuple[str, str]]:
    """Every method and path that a page of gradio's has."""
    found = json.loads(subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True).stdout)
    assert len(found) > 60
    return [(method, path) for method, path in found]


def strange_ways(client: httpx.Client) -> dict[str, dict[str, str]]:
    """Headers of those who may not come in, but for the last: a right key that a foreign page sends."""
    owner = {"Authorization": f"Bearer {TOKEN}"}
    made = client.post("/api/keys", json={"name": "gone"}, headers=owner).json()
    client.delete(f"/api/keys/{made['id']}", headers=owner)
    return {
        "nothing": {},
        "a page": {"Accept": "text/html"},
        "a wrong key": {"Authorization": "Bearer studio-wrong", "X-Api-Key": "studio-wrong"},
        "a key taken back": {"X-Api-Key": made["key"]},
        "a made-up session": {"Cookie": f"studio_session_{client.base_url.port}=made-up"},
        "a proxy's word": {"X-Forwarded-For": "127.0.0.1", "X-Original-URL": "/health", "X-Forwarded-User": "anna"},
        "a foreign page": {**owner, "Origin": "http://evil.example"},
    }


@pytest.mark.parametrize("whose", ["ours", pytest.param("gradio's", marks=pytest.mark.long)])
def test_nobody_comes_past_the_gate_by_any_route(stranger: httpx.Client, whose: str) -> None:
    routes = routes_of(stranger) if whose == "ours" else gradios()
    refused = {"a page": (303, 401), "a foreign page": (403,)}
    past = [
        (way, method, path, answer.status_code)
        for way, headers in strange_ways(stranger).items()
        for method, path in routes
        if path not in ("/login", "/health")
        and (answer := stranger.request(method, path, headers=headers)).status_code not in refused.get(way, (401, 429))
    ]
    assert past == []


@pytest.mark.parametrize("scope", ["chat", "read"])
def test_a_key_does_what_it_is_for_and_no_more(stranger: httpx.Client, scope: str) -> None:
    owner = {"Authorization": f"Bearer {TOKEN}"}
    made = stranger.post("/api/keys", json={"name": scope, "scope": scope, "days": 1}, headers=owner).json()
    program = {"Authorization": f"Bearer {made['key']}"}
    routes = routes_of(stranger)
    passed = set()
    for method, path in [*routes, *ROUTES]:
        if (method, path) in (("GET", "//health"), ("GET", "/health/../api/jobs")):
            continue
        answer = stranger.request(method, path, headers=program)
        if answer.status_code != 403:
            passed.add((method, path))
    expected = {
        "chat": {(method, path) for method, path in [*routes, *ROUTES] if path.startswith("/v1/") or path == "/api/chat"},
        "read": {(method, path) for method, path in [*routes, *ROUTES] if method == "GET" and path.startswith(("/v1/", "/api/"))}
        - {("GET", "/api/keys"), ("GET", "/api/sessions")}
        | {("POST", "/api/fit"), ("POST", "/api/jobs/check")},
    }[scope]
    assert passed == expected
    (listed,) = [one for one in stranger.get("/api/keys", headers=owner).json() if one["id"] == made["id"]]
    assert listed["expires_at"] > listed["created_at"] and listed["scope"] == scope


def test_what_is_right_passes_after_500_failures(guarded: Server) -> None:
    with httpx.Client(base_url=guarded.url, trust_env=False, timeout=120) as guesser:
        owner = {"Authorization": f"Bearer {TOKEN}"}
        key = guesser.post("/api/keys", json={"name": "right"}, headers=owner).json()["key"]
        seen = [guesser.get("/api/jobs", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(500)]
        assert set(seen[10:]) == {429}
        assert int(guesser.get("/api/jobs", headers={"Authorization": "Bearer x"}).headers["retry-after"]) > 0
        assert (
            guesser.get("/api/jobs", headers=owner).status_code
            == guesser.get("/api/jobs", headers={"Authorization": f"Bearer {key}"}).status_code
            == 200
        )
        forms = [guesser.post("/login", data={"name": "anna", "password": str(n)}).status_code for n in range(12)]
        assert forms == [401] * 10 + [429] * 2
        assert guesser.post("/login", data={"name": "anna", "password": "her password"}).status_code == 303
        assert guesser.get("/api/jobs").status_code == 200


def test_a_named_page_uses_v1_and_api_with_a_key(stranger: httpx.Client) -> None:
    page = {"Origin": CLIENT}
    asked = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    for path in ("/v1/chat/completions", "/api/jobs"):
        answer = stranger.options(path, headers={**asked, "Access-Control-Request-Private-Network": "true"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == CLIENT
        assert (
            "x-stainless-os" in answer.headers["access-control-allow-headers"] and "POST" in answer.headers["access-control-allow-methods"]
        )
        assert "access-control-allow-credentials" not in answer.headers
    refused = stranger.get("/v1/models", headers=page)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == CLIENT  # so that its script can read why
    answer = stranger.get("/v1/models", headers={**page, "X-Api-Key": TOKEN})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == CLIENT and "Origin" in answer.headers["vary"]
    assert "Studio-Ignored" in answer.headers["access-control-expose-headers"]
    stranger.post("/login", data={"password": TOKEN})
    assert stranger.get("/api/jobs").status_code == 200 and stranger.get("/api/jobs", headers=page).status_code == 401  # no cookie counts
    for path in ("/", "/config", "/gradio_api/info", "/login", "/logout", "/apix", "/health"):
        answer = stranger.post(path, headers=page)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    for origin in ("http://chat.example", "https://chat.example:3000", "http://evil.example", "null", f"{CLIENT}.evil.example"):
        for method in ("OPTIONS", "POST"):
            answer = stranger.request(method, "/v1/chat/completions", headers={**asked, "Origin": origin, "X-Api-Key": TOKEN})
            assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_a_key_comes_in_either_header(stranger: httpx.Client) -> None:
    for headers in (
        {"X-Api-Key": TOKEN},
        {"Authorization": "Bearer made-up", "X-Api-Key": TOKEN},
        {"Authorization": f"Bearer {TOKEN}", "X-Api-Key": "x"},
    ):
        assert stranger.get("/api/jobs", headers=headers).status_code == 200
    assert stranger.get("/api/jobs", headers={"X-Api-Key": "wrong"}).status_code in (401, 429)


def address_behind(server: Server, forwarded: str) -> str:
    """Under which address a login through a proxy is listed, and whether its cookie is for https alone."""
    headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        answer = client.post("/login", data={"password": TOKEN}, headers=headers)
        name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
        listed = client.get("/api/sessions", headers={"Cookie": f"{name}={value}"}).json()
        (address,) = [one["address"] for one in listed if one["is_current"]]
        return f"{address} {'Secure' in answer.headers['set-cookie']}"


def test_a_forwarded_address_does_not_count(guarded: Server) -> None:
    assert address_behind(guarded, "6.6.6.6, 10.1.1.1") == "127.0.0.1 False"


@pytest.mark.long
def test_a_named_proxy_says_who_asks_and_the_client_does_not(tmp_path: Path) -> None:
    with web(tmp_path / "home", STUDIO_TOKEN=TOKEN, STUDIO_TRUSTED_PROXIES="127.0.0.1,10.0.0.0/8") as behind:
        assert address_behind(behind, "6.6.6.6, 7.7.7.7, 10.1.1.1") == "7.7.7.7 True"


ASK = """
import encodings.idna, http.client, json, os, sys  # all of it before the files of this user can no longer be read
os.setuid(65534)
port, headers, path = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
connection = http.client.HTTPConnection("127.0.0.1", port)
seen = []
for _ in range(2):
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    seen.append(answer.status)
    text = answer.read()
print(*seen, text.decode()[:300])
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start another user's process")
def test_another_user_of_this_machine_needs_the_token(client: httpx.Client, server: Server) -> None:
    def other(path: str, **headers: str) -> str:
        command = [sys.executable, "-c", ASK, str(client.base_url.port), json.dumps(headers), path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert client.get("/api/jobs").status_code == 200
    for path in ("/api/jobs", "/v1/models", "/config", "/gradio_api/info", "/"):
        assert other(path).startswith("401 401 ") and other(path, Authorization="Bearer any").startswith(("401 401 ", "429 429 "))
    assert "can't tell whose" in other("/api/jobs") and "studio up" in other("/v1/models")
    assert other("/api/jobs", Authorization=f"Bearer {TOKEN}").startswith("200 200 ")
    assert other("/", Accept="text/html").startswith("303 303 ") and other(f"/?token={TOKEN}").startswith("303 303 ")
    assert other("/health").startswith("200 200 ")
    made = client.post("/api/keys", json={"name": "theirs", "scope": "chat"}).json()
    assert other("/v1/models", **{"X-Api-Key": made["key"]}).startswith("200 200 ")
    assert other("/api/jobs", **{"X-Api-Key": made["key"]}).startswith("403 403 ")


@pytest.mark.parametrize("headers", [{"X-Forwarded-For": "1.2.3.4"}, {"Via": "1.1 proxy"}, {"CF-Connecting-IP": "1.2.3.4"}])
def test_whom_a_local_proxy_speaks_for_needs_the_token(client: httpx.Client, headers: dict[str, str]) -> None:
    assert client.get("/api/jobs", headers=headers).status_code == 401
    assert client.get("/api/jobs", headers={**headers, "Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/api/jobs").status_code == 200  # on the same connection
