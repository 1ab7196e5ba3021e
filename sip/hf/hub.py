"""Downloads checkpoints from the Hugging Face hub: hf://ORGANISATION/NAME."""

from sip.structs import UserError
from sip.workdir import check_reachable

PREFIX = "hf://"
WANTED = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja")


def local(source: str) -> str:
    """Returns the local directory of a checkpoint.

    A directory, also one in a store (gs://...), is returned unchanged. hf://ORGANISATION/NAME is
    downloaded into the cache of huggingface_hub, once. Raises UserError if the package is missing,
    the download fails or the store cannot be reached.
    """
    if not source.startswith(PREFIX):
        check_reachable(source, "checkpoint")
        return source
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{source}: needs huggingface_hub: pip install 'sip-jax[hf]'") from None
    try:
        return snapshot_download(source.removeprefix(PREFIX), allow_patterns=list(WANTED))
    except Exception as error:  # errors of several libraries, for network, rights or names
        raise UserError(f"{source}: cannot be downloaded: {error}") from error
