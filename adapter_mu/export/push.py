"""Upload to the Hugging Face hub: only when asked, private unless told otherwise."""

from __future__ import annotations

from pathlib import Path

from adapter_mu.errors import UserError


def push(path: Path, repo: str, *, public: bool = False) -> str:
    """Upload a merged folder, or a single file with its card, and return the address.

    Args:
        path: what `merge`, `export` or `extract` wrote.
        repo: "owner/name"; made if there is none.
        public: otherwise the repository is private, and one that exists and is public is refused.

    Raises:
        UserError: nothing at `path`, no card, a public repository, or the hub refused.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    card = path / "README.md" if path.is_dir() else path.with_suffix(".md")
    if not path.exists() or not card.is_file():
        raise UserError(f"'{path}' has no model card at '{card}': push what adapter-mu merge or export has written.")
    hub = HfApi()
    try:
        hub.create_repo(repo, private=not public, exist_ok=True)
        if not public and not hub.repo_info(repo).private:
            raise UserError(f"'{repo}' exists and is public: name another --repo, or say --public.")
        if path.is_dir():
            hub.upload_folder(repo_id=repo, folder_path=path)
        else:
            hub.upload_file(repo_id=repo, path_or_fileobj=path, path_in_repo=path.name)
            hub.upload_file(repo_id=repo, path_or_fileobj=card, path_in_repo="README.md")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the hub did not take '{repo}' ({reason}): check the name and log in with `hf auth login`."
        ) from error
    return f"https://huggingface.co/{repo}"
