"""Checkpoints by the name that they have on the hub: hf://ORGANISATION/NAME."""

from sip.structs import UserError

PREFIX = "hf://"
WANTED = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja")


def local(source: str) -> str:
    """A directory as it is; what a hub's id names is fetched, once, and its directory returned.

    Raises UserError in one line where it cannot be had.
    """
    if not source.startswith(PREFIX):
        return source
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{source}: needs huggingface_hub: pip install 'sip-jax[hf]'") from None
    try:
        return snapshot_download(source.removeprefix(PREFIX), allow_patterns=list(WANTED))
    except Exception as error:  # of several libraries: whatever it is, the checkpoint is not there
        raise UserError(f"{source}: cannot be fetched: {error}") from error
