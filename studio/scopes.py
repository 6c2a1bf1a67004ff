"""What a key may do, route by route. What no line here names is for keys of the scope `everything` alone, the page included."""

from __future__ import annotations

from studio.records import KeyScope

LOOKING = ("GET", "HEAD")
ASKING = ("/api/chat",)  # besides /v1
COMPUTING = ("/api/fit", "/api/jobs/check")  # posted because of their size; they keep and start nothing
PRIVATE = ("/api/keys", "/api/sessions")  # who else has access, and from where


def allows(scope: KeyScope, method: str, path: str) -> bool:
    """Whether a key of `scope` may send this request."""
    if scope == KeyScope.EVERYTHING:
        return True
    asks = _is_under(path, "/v1") or path in ASKING
    looks = method in LOOKING
    if scope == KeyScope.CHAT:
        return asks
    if any(_is_under(path, one) for one in PRIVATE):
        return False
    return (looks and (asks or _is_under(path, "/api"))) or (method == "POST" and path in COMPUTING)


def _is_under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
