"""Uploads of an exported folder: `publish_kaggle` to Kaggle, `publish_hub` to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from reasonkit.session.secrets import check_key, describe_error, kaggle_login, secret

_SLUG = re.compile(r"[a-z0-9]([a-z0-9._-]{0,48}[a-z0-9])?")


class PublishError(RuntimeError):
    """Nothing was published. Says why, and what to set or click."""


def publish_kaggle(folder: str | Path, handle: str) -> str:
    """Upload an exported folder as a new version of a Kaggle model, which is created if needed.

    handle: owner/model/framework/variation without a version, such as you/gemma2-2b-reasons/flax/2b-it. Its licence is
    chosen on its page. Credentials are as in `secrets.kaggle_login`. Returns a sentence on what to do next.

    Raises PublishError for a malformed handle, for a folder without weights, card or NOTICE, for missing or unreadable
    credentials, and if the upload fails.
    """
    import kagglehub  # here, because importing it reads settings and credentials
    from kagglehub.handle import parse_model_handle

    try:
        parsed = parse_model_handle(handle)
        parsed.framework_enum()
    except ValueError as error:
        raise PublishError(f"handle {handle!r}: {error}; it is owner/model/framework/variation, such as "
                           "you/gemma2-2b-reasons/flax/2b-it") from error
    if handle.count("/") > 3:
        raise PublishError(f"handle {handle!r} names a version: leave it out, Kaggle counts them")
    for slug in (parsed.owner, parsed.model, parsed.variation):
        if not _SLUG.fullmatch(slug):
            raise PublishError(f"handle {handle!r}: {slug!r} must be small letters, digits and, inside, hyphens, "
                               "underscores and dots")
    _check_export(Path(folder))
    failed = ""
    try:
        with kaggle_login() as keys:
            if not keys:
                raise PublishError("no Kaggle credentials: make a token in your Kaggle settings and set it as the "
                                   "secret or variable KAGGLE_API_TOKEN")
            try:
                kagglehub.model_upload(handle, str(folder))
            except Exception as error:  # kagglehub's own or its HTTP client's. It may quote the token
                failed = (f"the upload to {handle} failed ({describe_error(error, *keys)}); nothing was published, or "
                          "only a part: run it again")
    except ValueError as error:  # of kaggle_login, which quotes none
        failed = str(error)
    if failed:  # raised here, so the original error is not its context
        raise PublishError(failed)
    name = f"{parsed.owner}/{parsed.model}"
    return (f"published to {handle}. Kaggle makes a new model private: make it public on kaggle.com/models/{name} and "
            f'choose its licence there; the submission then names it as unrestricted_kaggle_model = "{name}"')


def publish_hub(folder: str | Path, name: str) -> str:
    """Upload an exported folder to a model repository on the Hugging Face hub, created as private if needed.

    name: owner/repository. The token is the secret HF_TOKEN and must allow writing. $HF_ENDPOINT may name another hub.
    Returns a sentence on what to do next.

    Raises PublishError for a folder without weights, card or NOTICE, for a missing or unreadable token, and if the
    upload fails, also because of the name.
    """
    from huggingface_hub import HfApi  # here, because importing it reads settings

    _check_export(Path(folder))
    if not (token := secret("HF_TOKEN")):
        raise PublishError("no token for the Hugging Face hub: make one that can write in your settings there, and set "
                           "it as the secret or variable HF_TOKEN")
    try:
        check_key(token, "HF_TOKEN")
    except ValueError as error:
        raise PublishError(str(error)) from None
    failed = ""
    try:
        hub = HfApi(token=token)
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload")
    except Exception as error:  # huggingface_hub's own or its HTTP client's. It may quote the token
        failed = (f"the upload to {name} failed ({describe_error(error, token)}); nothing was published, or only a "
                  "part: run it again")
    if failed:  # raised here, so the original error is not its context
        raise PublishError(failed)
    return f"published to {hub.endpoint}/{name}. A new repository is private: make it public in its settings there"


def _check_export(folder: Path) -> None:
    """Raises PublishError for a folder without weights, card or NOTICE."""
    missing = [name for name in ("README.md", "NOTICE") if not (folder / name).is_file()]
    if missing or not any(path for pattern in ("*.safetensors", "*/_METADATA") for path in folder.glob(pattern)):
        raise PublishError(f"{folder} lacks {' and '.join(missing) or 'weights'}: export the model there and write its "
                           "card (card.write_card) first")
