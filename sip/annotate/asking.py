"""Flags of the commands that ask a model about the texts of a corpus, and what they name.

`CorpusFlags` name the texts, `ModelFlags` the model: a local checkpoint or a server.
"""

from dataclasses import dataclass
from typing import Any

from absl import flags

from sip import cli, loading, mesh
from sip.data import files
from sip.hf import hub
from sip.loading import LoadedModel
from sip.structs import UserError
from sip.text import untrusted
from sip.textgen import cached, remote
from sip.textgen.local import Local
from sip.textgen.protocol import TextGenerator

# The flags belong to the command that asks for them: its --help lists them.
flags.disclaim_key_flags()


@dataclass(frozen=True)
class CorpusFlags:
    """The flags of a corpus: that of a config in a workdir, or a file."""

    config: flags.FlagHolder
    workdir: flags.FlagHolder
    corpus: flags.FlagHolder
    field: flags.FlagHolder

    def check(self) -> None:
        """Raises UserError unless the flags name one corpus."""
        if (self.config.value is None) == (not self.corpus.value):
            raise UserError("give either --config or --corpus")
        if self.config.value is not None and self.workdir.value is None:
            raise UserError("--workdir is needed with --config")

    def section(self) -> dict[str, Any]:
        """Returns the section `data` of --corpus, without `cut`. Raises UserError for a file of
        another kind."""
        path = str(self.corpus.value)
        source = files.format_of(path)
        if source not in ("txt", "jsonl", "parquet"):
            raise UserError(f"--corpus {path}: must be .txt, .jsonl or .parquet, also .gz or .zst")
        own = dict(source=source, path=path, field=str(self.field.value))
        return {**own, "max_skipped_fraction": 1.0}


def corpus_flags() -> CorpusFlags:
    """Defines the flags of a corpus for a command."""
    kinds = "A .txt, .jsonl or .parquet file (also .gz, .zst), instead of --config."
    named = "With --corpus: field of the text."
    return CorpusFlags(
        cli.config_flag(),
        cli.shared(cli.path_flag, "workdir", None, "Workdir with the corpus of --config."),
        cli.shared(cli.path_flag, "corpus", "", kinds),
        cli.shared(flags.DEFINE_string, "field", "text", named),
    )


@dataclass(frozen=True)
class ModelFlags:
    """The flags of a model: a local checkpoint, or a server."""

    checkpoint: flags.FlagHolder
    url: flags.FlagHolder
    model: flags.FlagHolder
    api: flags.FlagHolder
    key_env: flags.FlagHolder
    cache: flags.FlagHolder

    @property
    def given(self) -> bool:
        """True if exactly one model is named."""
        return bool(self.checkpoint.value) != bool(self.url.value)

    def local(self) -> tuple[TextGenerator, LoadedModel]:
        """Loads --checkpoint. Returns the model, with its answers saved in --cache, and itself."""
        directory, cache = hub.local(self.checkpoint.value), str(self.cache.value)
        loaded = loading.load_model(directory, mesh.single())
        model = Local(loaded)
        kept = cached.CachedAnswers(model, cache, cached.name_of(directory)) if cache else model
        return kept, loaded

    def server(self) -> remote.Remote:
        """Returns the server --url. Raises UserError if it does not answer."""
        server = remote.Remote(
            remote.RemoteConfig(
                url=self.url.value,
                model=self.model.value,
                api=self.api.value,
                key_env=self.key_env.value,
                cache=self.cache.value,
                logprobs=0,
                specials=untrusted.SPECIALS,
            )
        )
        server.check()
        return server


def model_flags() -> ModelFlags:
    """Defines the flags of a model for a command."""
    text = flags.DEFINE_string
    server, key = "Server instead of --checkpoint, http://.../v1.", "server's API key"
    return ModelFlags(
        cli.checkpoint_flag(),
        cli.shared(text, "url", "", server),
        cli.shared(text, "model", "", "Name of the model on the server."),
        cli.shared(cli.api_flag, "api", "completions", "API of the server."),
        cli.shared(text, "key_env", "", f"Environment variable with the {key}."),
        cli.shared(cli.path_flag, "cache", "", "Directory to save answers in, for resuming."),
    )
