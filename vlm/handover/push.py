"""A folder that is whole put on a hub, by explicit choice: nothing else in merging touches the network."""

import os
from pathlib import Path

from shards.errors import BadInput, ServerFault, plain
from shards.files import MANIFEST, UNFINISHED, verify_manifest
from vlm.merge.card import HUB_NAME

TOKEN = "HF_TOKEN"


def checked(name: str) -> str:
    """The token, where `name` is one of a hub; BadInput otherwise. To be asked before hours of work."""
    if not HUB_NAME.fullmatch(name):
        raise BadInput(f"--push {plain(name)}: a name of the hub is wanted, as owner/name")
    if not (token := os.environ.get(TOKEN)):
        raise BadInput(f"{TOKEN} is not set; make a token with write access and export it")
    return token


def push(folder: Path, name: str, public: bool = False, endpoint: str | None = None) -> str:
    """Upload `folder` as the model OWNER/NAME, in one commit; its address.

    The repository is made where there is none, private unless `public`. The token comes from the variable HF_TOKEN,
    `endpoint` stands for HF_ENDPOINT. BadInput for a folder that is not whole; ServerFault where the hub refuses.
    """
    token = checked(name)
    if not (folder / MANIFEST).exists():
        raise BadInput(f"{folder}: holds no {MANIFEST}; push what `vlm` has written")
    if problems := verify_manifest(folder):
        raise BadInput(f"{folder} is damaged: {problems[0]}")
    # it takes its time, and most merges are not pushed
    import httpx2
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Upload by vlm",
            ignore_patterns=[UNFINISHED],
            # of an earlier push in other pieces
            delete_patterns=["*.safetensors", "*.safetensors.index.json"],
        )
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise ServerFault(f"{name}: not pushed ({plain(' '.join(str(error).split()).replace(token, '…'))})") from None
    return str(done.commit_url)
