"""The Hugging Face Hub: commits of `hf://` URLs (which fsspec reads), a file of a repository, a folder as a new one."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import ModuleType

from mm_lightning.errors import UserError
from mm_lightning.retry import NOT_CACHED, Unreachable
from mm_lightning.stores import from_store

_REPOSITORY = re.compile(r"[\w.\-]+/[\w.\-]+")


def is_repository(name: str) -> bool:
    """Return whether a name has the form of a repository's: ORG/NAME, and not that of a file: NAME/tokenizer.json."""
    return bool(_REPOSITORY.fullmatch(name)) and name[0] not in ".~" and not name.endswith(".json")


def pinned(url: str) -> str:
    """Return an `hf://` URL with the commit that its revision is now in the place of it; other URLs as they are.

    What it names is the same then from the first file to the last, whatever is uploaded meanwhile.

    Raises:
        OSError: the repository or revision is not there or not allowed, or the Hub cannot be reached.
    """
    if not url.startswith("hf://"):
        return url
    import fsspec

    fs, path = from_store(lambda: fsspec.core.url_to_fs(url))
    place = from_store(lambda: fs.resolve_path(path))
    if not hasattr(place, "repo_id"):  # a bucket, which has no commits
        return url
    kind, name, revision = place.repo_type, place.repo_id, place.revision
    commit = from_store(lambda: _library().HfApi().repo_info(name, repo_type=kind, revision=revision)).sha
    folder = "" if kind == "model" else f"{kind}s/"
    return f"hf://{folder}{name}@{commit}/{place.path_in_repo}".rstrip("/")


def commit_of(url: str) -> str | None:
    """Return the commit that a pinned URL names."""
    match = re.match(r"hf://[^@]+@([0-9a-f]{40})(?:/|$)", url)
    return match and match[1]


def download(name: str, file: str) -> Path:
    """Return the path of a file of a repository in the cache of huggingface_hub; it is asked for if it is not there.

    Args:
        name: of the repository, ORG/NAME or ORG/NAME@REVISION.
        file: its path there.

    Raises:
        UserError: huggingface_hub is not installed.
        OSError: neither cached nor to be had, with what to do.
    """
    hub, (repository, _, revision) = _library(), name.partition("@")
    get = partial(hub.hf_hub_download, repository, file, revision=revision or None)
    try:
        return Path(get(local_files_only=True))
    except (OSError, ValueError):  # not cached, or no name of a repository
        try:  # hf_hub_download goes on for 23 seconds where there is no network
            from_store(lambda: hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision or None)))
        except Unreachable as error:
            raise Unreachable(NOT_CACHED) from error
        except OSError:
            pass  # it says what is wrong, or tries again
        return Path(from_store(get))


def check_publishing(name: str) -> None:
    """Check, before the work, that a folder can be published under a name.

    Raises:
        UserError: huggingface_hub is not installed, the name is none, or there is no token.
    """
    hub = _library()
    if not is_repository(name):
        raise UserError(f"{name!r} is not the name of a repository of the Hugging Face Hub: give ORG/NAME")
    if not hub.get_token():
        raise UserError(f"there is no token to publish {name} with: log in by `hf auth login`, or set HF_TOKEN")


def publish(folder: Path, name: str, private: bool) -> str:
    """Upload all files of a folder to a repository, which is made if there is none, and return its address.

    Args:
        folder: the folder.
        name: of the repository, ORG/NAME.
        private: whether a new one is private; an existing one stays as it is.

    Raises:
        UserError: it is refused, or the Hub cannot be reached; nobody sees a part of an upload.
    """
    api = _library().HfApi()
    try:
        address = from_store(lambda: api.create_repo(name, private=private, exist_ok=True))
        from_store(lambda: api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by mm export"))
    except OSError as error:
        reason = f"cannot be published as {name}: {error}"
        raise UserError(f"{folder} is exported, but {reason} (later: hf upload {name} {folder})") from error
    return str(address)


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("the Hub needs the package huggingface_hub: pip install 'mm-lightning[hub]'") from error
    return huggingface_hub
