"""Put one folder on the Hugging Face hub: `python -m studio.catalogue.upload FOLDER REPOSITORY public|private`.

A process of its own, as studio.catalogue.hub. Prints {"error": null, "url": …} or {"error": {"message", "fix"}}. The token is
that of the environment, and is kept nowhere.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from studio import lifeline
from studio.errors import ModelError


def upload(folder: Path, repository: str, private: bool) -> str:
    """The address of the repository. Raises ModelError in one line."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        files = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in sorted(folder.iterdir()) if file.is_file()]
        api.create_commit(repository, operations=files, commit_message="Export of Adapter Studio")  # all of it or nothing
    except HFValidationError:
        raise ModelError(f"{repository[:100]!r} is no name for the hub.", "Write it as OWNER/NAME.") from None
    except HfHubHTTPError as exc:
        if exc.response is not None and exc.response.status_code in (401, 403):
            raise ModelError(
                f"The hub does not let this token write to {repository}.", "Set HF_TOKEN to a token that may write there, and start again."
            ) from None
        raise _unreachable(repository, exc) from None
    except OfflineModeIsEnabled as exc:
        raise _unreachable(repository, exc) from None
    return str(url)


def _unreachable(repository: str, exc: Exception) -> ModelError:
    return ModelError(
        f"The hub can't be reached, so {repository} was not written ({type(exc).__name__}).", "Check the network, then push again."
    )


def main() -> None:
    lifeline.end_with_parent()
    folder, repository, visibility = sys.argv[1:]
    error, url = None, ""
    try:
        if not os.environ.get("HF_TOKEN"):
            raise ModelError("There is no token for the hub.", "Set HF_TOKEN in the studio's environment to one that may write.")
        url = upload(Path(folder), repository, visibility == "private")
    except ModelError as exc:
        error = exc.as_json()
    except Exception as exc:  # noqa: BLE001 - the edge of this process: whatever the hub's client raises becomes one line
        error = _unreachable(repository, exc).as_json()
    print(json.dumps({"error": error, "url": url}))


if __name__ == "__main__":
    main()
