"""Shared code of the command lines: common flags, one-line errors, exit codes."""

import contextlib
import ctypes
import errno
import functools
import gc
import hashlib
import io
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

try:
    import jax
    from jaxlib import xla_client
except ValueError as e:  # JAX reads its variables here
    given = ", ".join(f"{k}={v!a}" for k, v in sorted(os.environ.items()) if k[:4] == "JAX_")
    print(f"error: JAX cannot use a variable ({e}); set are {given}", file=sys.stderr)
    sys.exit(2)

from sip import processes
from sip.sections import LARGEST
from sip.stages import recipe
from sip.structs import UserError
from sip.textgen import remote
from sip.training.loop import Stopped
from sip.workdir import place

# Exit codes: an error that the user can fix, Ctrl-C, and one of several processes that failed.
MENDABLE, INTERRUPTED, LEFT = 2, 130, 1


PRINT = "print_config"
PROGRAMS_BYTES = 4 << 30  # compiled programs kept per user and kind of CPU; the oldest go first
PROGRAMS_SECONDS = 0.05  # compile time from which a program is kept
FEW_CPUS = 16  # that share one arena of malloc
KEPT_FROM = "jax_persistent_cache_min_compile_time_secs"  # JAX's setting of it
QUICK = (  # XLA's flags of the config's `compile`
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_multi_thread_eigen=false",  # small products wait for threads longer than they take
)
# Configs that any config may import: those of the source tree, which an editable install uses.
SHIPPED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")


# The flags below belong to the command that asks for them: its --help lists them.
flags.disclaim_key_flags()


class _Path(flags.ArgumentParser):
    """Reads a path; see `sip.workdir.place`."""

    def parse(self, argument: str) -> str:
        """Returns the path with ~ expanded and without file://."""
        return place(argument)

    def flag_type(self) -> str:
        """Returns the type that --help shows."""
        return "path"


def path_flag(name: str, default: str | None, text: str) -> flags.FlagHolder:
    """Defines a flag that is a path."""
    return flags.DEFINE(_Path(), name, default, text)


def config_flag() -> flags.FlagHolder:
    """Defines --config and --print_config for a command."""
    if "config" not in flags.FLAGS:
        text = "Config file, with :VARIANT where it has variants."
        config_flags.DEFINE_config_file("config", None, text, lock_config=True)
    text = "Print all keys of the config with their values, one per line, and do nothing else."
    shared(flags.DEFINE_bool, PRINT, False, text)
    flags.declare_key_flag(PRINT)
    return _owned("config")


def config_file() -> str:
    """Returns the path of --config; empty if it is not given."""
    given = flags.FLAGS["config"]
    return config_flags.get_config_filename(given) if given.value is not None else ""


def checkpoint_flag() -> flags.FlagHolder:
    """Defines --checkpoint for a command."""
    text = "Directory of a run, such as WORKDIR/runs/base, or of a Hugging Face checkpoint."
    return shared(path_flag, "checkpoint", None, text)


def workdir_flag() -> flags.FlagHolder:
    """Defines --workdir for a command."""
    text = "Directory that everything is written to (a local path or gs://)."
    return shared(path_flag, "workdir", None, text)


def seed_flag() -> flags.FlagHolder:
    """Defines --seed for a command."""
    define = functools.partial(flags.DEFINE_integer, lower_bound=0, upper_bound=LARGEST)
    return shared(define, "seed", 0, "Seed of the random draws.")


def json_flag() -> flags.FlagHolder:
    """Defines --json for a command."""
    return shared(flags.DEFINE_bool, "json", False, "Print JSON to stdout instead of text.")


def tensor_flag() -> flags.FlagHolder:
    """Defines --tensor for a command."""
    text = "Number of devices along the mesh axis `tensor`."
    return shared(count_flag, "tensor", 1, text)


def count_flag(name: str, default: int, text: str) -> flags.FlagHolder:
    """Defines a flag that is a number from 1 to LARGEST."""
    return flags.DEFINE_integer(name, default, text, lower_bound=1, upper_bound=LARGEST)


def api_flag(name: str, default: str, text: str) -> flags.FlagHolder:
    """Defines a flag that is the API of a server."""
    return flags.DEFINE_enum(name, default, tuple(remote.APIS), text)


def shared(define, name: str, default, text: str) -> flags.FlagHolder:
    """Defines a flag for a command, or reuses it if another command of this process has defined it
    already (a test or a notebook imports several commands). A command that runs alone has the
    default given here."""
    if name not in flags.FLAGS:
        define(name, default, text)
    return _owned(name)


def _owned(name: str) -> flags.FlagHolder:
    """The flag, listed by --help of the command that calls."""
    flags.declare_key_flag(name)
    return flags.FlagHolder(flags.FLAGS, flags.FLAGS[name])


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags, runs `main(argv)` and exits.

    Exit codes: 0 done, or stopped and saved; 1 one of several processes failed; 2 an error that the
    user can fix, printed as one line; 130 interrupted.
    """
    prepare()
    app.run(lambda argv: sys.exit(code(main, argv)), flags_parser=_parse)


def prepare() -> None:
    """Prepares the process of a command: signals, streams, memory, logging; checks variables."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: blocks clean up
    open_streams()
    gc.freeze()  # what imports have made lives as long as the process: collections pass it over
    keep_memory()
    keep_programs()
    sys.unraisablehook = _unraisable
    # These libraries log errors and also raise them. The raised ones are enough.
    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in ("orbax", "gcsfs", "s3fs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    flags_say = flags_problem()
    problem = f"XLA_FLAGS: {flags_say}; correct or unset it" if flags_say else ""
    if jax.config.read("jax_enable_x64"):
        problem = "JAX_ENABLE_X64: sip computes in float32 and bfloat16; unset it"
    if problem:
        _say(problem)
        sys.exit(MENDABLE)


def open_streams() -> None:
    """Makes the standard streams usable: characters that stdout cannot show are escaped.

    Closed streams are opened on /dev/null. Otherwise a file that is opened later would get their
    number, and what libraries print would be written into it.
    """
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
    sys.stdin = sys.stdin or open(os.devnull)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def flags_problem() -> str:
    """Returns what is wrong with XLA_FLAGS; "" if nothing is.

    XLA ends the process if it cannot parse them, so a child process tries first.
    """
    if not os.environ.get("XLA_FLAGS"):
        return ""
    with tempfile.TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads; no lock of theirs is needed here
        child = os.fork()
        if not child:
            try:
                os.dup2(said.fileno(), 2)
                xla_client.make_cpu_client()
                os._exit(0)
            finally:
                os._exit(1)
        if not os.waitpid(child, 0)[1]:
            return ""
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines() or ["cannot be parsed"]
    return " ".join(lines[0].rpartition("] ")[2].split())[:300]


def _unraisable(error) -> None:
    """Prints an exception that cannot be raised, except those of reads that Orbax has given up:
    they end or call back after one of them failed, and that one is raised."""
    code = getattr(error.object, "cr_code", None)  # of a coroutine
    given_up = code is not None and "orbax" in code.co_filename.split(os.sep)
    if not given_up and str(error.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(error)


def _parse(argv):
    try:
        argv = [_placed(arg) for arg in argv]
        _admit_siblings(argv)
        left = flags.FLAGS(argv)
        _check_config()
        return left
    except (AttributeError, KeyError) as e:  # ml_collections reports the key, but not the flag
        said = _words(e)
        none = "has no attribute 'get_config'" in said
        _say(
            "--config: it has no get_config()"
            if none
            else f"{_mentioned(argv, said)}: unknown key {said}"
        )
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(INTERRUPTED)
    except Exception as e:  # a config file is the user's code: it may raise anything
        _say(_of_config(argv, e))
    sys.exit(MENDABLE)


def read_config(path: str, overrides: Sequence[str]) -> Any:
    """Returns the locked config of a file, for a command without absl flags.

    `path` may end with :VARIANT; `overrides` are flags such as --config.seed=1. Raises UserError.
    """
    argv = ["sip", f"--config={place(path)}", *overrides]
    values, kept = flags.FlagValues(), sys.argv
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    try:
        _admit_siblings(argv)
        sys.argv = argv  # ml_collections reads the overrides there
        values(argv)
        return values["config"].value
    except (AttributeError, KeyError) as e:
        raise UserError(f"{_mentioned(argv, _words(e))}: unknown key {_words(e)}") from e
    except UserError:
        raise
    except Exception as e:  # a config file is the user's code: it may raise anything
        raise UserError(_of_config(argv, e)) from e
    finally:
        sys.argv = kept


def _placed(arg: str) -> str:
    """Applies `place` to --config=FILE, which is not a path flag since ml_collections reads it."""
    name, given, file = arg.partition("=")
    return f"{name}={place(file)}" if given and name.lstrip("-") == "config" else arg


def _admit_siblings(argv) -> None:
    """Adds the directory of the config file to sys.path, and after it the one of the shipped
    configs: a config may import its siblings and them."""
    for path in _config_paths(argv):
        if not os.path.isfile(path):
            raise UserError(f"--config: no such file: {path}")
        own = os.path.dirname(os.path.abspath(path))
        sys.path[:0] = [own] if os.path.realpath(own) == SHIPPED else [own, SHIPPED]


def _config_paths(argv) -> Iterator[str]:
    """Yields the file of each --config in `argv`, without its variant."""
    for arg, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        name, given, file = arg.lstrip("-").partition("=")
        if name == "config":
            yield (file if given else following).rpartition(".py")[0] + ".py"


def _of_config(argv, error: Exception) -> str:
    """Returns the message of an error in a config file; of an import that failed, with the file."""
    if not isinstance(error, ImportError):
        return _words(error)
    moved = (error.name or "").partition(".")[0] == "sip"
    way = "; it is of another version of sip: use a config of the installed one" if moved else ""
    return f"--config {', '.join(_config_paths(argv))}: {_words(error)}{way}"


def _check_config() -> None:
    """Raises UserError if the config file's get_config returns no config."""
    given = flags.FLAGS["config"] if "config" in flags.FLAGS else None
    if given is not None and given.present and not isinstance(given.value, ConfigDict):
        kind = type(given.value).__name__
        raise UserError(f"--config: get_config() must return a ConfigDict, not {kind}")


def _mentioned(argv, text: str) -> str:
    """Returns the --config.* flags in `argv` with a key that is quoted in `text`."""
    names = [arg.partition("=")[0] for arg in argv if arg.startswith("--config.")]
    has = lambda name: any(f"'{part}'" in text for part in name.split(".")[1:])
    return ", ".join(filter(has, names)) or "config"


def code(main, argv) -> int:
    """Runs `main(argv)`, prints its errors and returns the exit code.

    With several processes a failing one exits at once. An orderly shutdown would wait for the other
    processes, and they would wait for this one.
    """
    try:
        (print_config if _asked_to_print() else main)(argv)
        sys.stdout.flush()
    except UserError as e:
        _say(e)
        return _failed(MENDABLE)
    except (BrokenPipeError, SystemExit) as e:  # the reader of stdout closed it, as `head` does
        # rich ends the program instead, with an exit code of its own.
        if not isinstance(e if isinstance(e, BrokenPipeError) else e.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Stopped as e:
        print(f"{e}; run the same command to continue", file=sys.stderr)
    except KeyboardInterrupt:
        _say("interrupted")
        return _failed(INTERRUPTED)
    except Exception as e:
        if full := _full_disk(e):
            _say(f"no space left on the disk of {full}; saved checkpoints are intact")
            return _failed(MENDABLE)
        if problem := _environment(e):
            _say(problem)
            return _failed(MENDABLE)
        if not processes.is_distributed():
            raise
        traceback.print_exc()
        gone = isinstance(e, jax.errors.JaxRuntimeError)
        _say(
            f"{processes.GONE if gone else 'this process failed'}; run the same command to continue"
        )
        return _failed(LEFT)
    return 0


def _asked_to_print() -> bool:
    return PRINT in flags.FLAGS and bool(flags.FLAGS[PRINT].value)


def print_config(argv) -> None:
    """Prints each key of --config and its value as Python text, with the defaults of keys that it
    leaves out. Sections that are not valid yet are printed as they are, and named on stderr."""
    del argv
    config = flags.FLAGS["config"].value
    if config is None:
        raise UserError("--config is needed")
    values, problems = recipe.filled(config)
    print("\n".join(_assignments(values)))
    for name, problem in problems.items():
        _say(f"{name} is not valid yet: {problem}", "warning")


def _assignments(value, at: str = ""):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _assignments(inner, f"{at}.{key}".lstrip("."))
    else:
        yield f"{at} = {value!r}"


def _full_disk(error: BaseException | None) -> str:
    """Returns the file that did not fit on its disk, or "" for any other error.

    Follows the chain of causes. Libraries wrap ENOSPC in their own exceptions, so the message is
    searched too.
    """
    while error is not None:
        at_fault = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if at_fault or "No space left on device" in str(error):
            named = re.search(r'"(/[^"]+)"', str(error))
            return str(
                getattr(error, "filename", None) or (named[1] if named else "stdout or the workdir")
            )
        error = error.__cause__ or error.__context__
    return ""


def _environment(error: Exception) -> str:
    """Returns what the user can mend outside the program; "" for any other error."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and (name := error.name):
        return f"the package {name} is missing: pip install {name.partition('.')[0]}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = " ".join(str(error).split())[:200]
        return f"out of memory: ask for fewer or smaller batches, samples or models ({reason})"
    if isinstance(error, RuntimeError | AssertionError) and not processes.is_distributed():
        # JAX forgets a failure if some of the platforms are there, and has an AssertionError
        # without words for an absent platform.
        reason = _words(error) if "Unable to initialize backend" in str(error) else ""
        try:
            jax.devices()
        except Exception as e:
            reason = _words(e)
        names = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")
        wanted = ", ".join(f"{k}={os.environ[k]}" for k in names if k in os.environ)
        return f"{wanted or 'JAX'}: no such devices here; unset it ({reason})" if reason else ""
    return ""


def _failed(exit_code: int) -> int:
    if processes.is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)  # skips jax.distributed's shutdown barrier
    return exit_code


def _say(error, kind: str = "error") -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or no space; the exit code remains
        print(f"{kind}: {_words(error)}", file=sys.stderr)


def _words(error) -> str:
    """Returns the message of an error on one line; of an embedded traceback only the last line."""
    while (
        isinstance(error, BaseException)
        and error.args
        and (isinstance(error, KeyError) or isinstance(error.args[0], BaseException))
    ):
        error = error.args[0]
    text = str(error).strip() or type(error).__name__
    return _shown(" ".join(text.splitlines()[-1].split() if "Traceback" in text else text.split()))


def _shown(text: str) -> str:
    """Escapes control and invisible characters, which files and servers could send a terminal."""
    escaped = lambda c: c.encode("unicode_escape", "surrogatepass").decode()
    return "".join(c if c.isprintable() else escaped(c) for c in text)


def keep_memory() -> None:
    """Makes malloc keep freed buffers in the process (glibc only; does nothing elsewhere).

    XLA's CPU backend allocates and frees its buffers in every step. Returning their pages to the
    kernel each time costs more time than the kept memory is worth.
    """
    trim_threshold, mmap_threshold, mmap_max, arena_max = -1, -3, -4, -8
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        # Hosts of accelerators have many threads, which should not wait for one arena.
        if (os.cpu_count() or FEW_CPUS) > FEW_CPUS or "MALLOC_ARENA_MAX" in os.environ:
            libc.mallopt(mmap_threshold, 32 << 20)  # the largest that it takes
            return
        libc.mallopt(mmap_max, 0)  # a buffer with pages of its own is always returned
        libc.mallopt(arena_max, 1)  # a thread's own arena is too small for large buffers


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache directory, where the next start finds them.

    Only a single process does (`processes.start` ends it for several). JAX's own settings, such as
    JAX_COMPILATION_CACHE_DIR, come first. Without a directory to write to nothing is kept.
    """
    config: Any = jax.config
    if KEPT_FROM.upper() not in os.environ:
        config.update(KEPT_FROM, PROGRAMS_SECONDS)
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    path = programs_dir()
    with contextlib.suppress(OSError):
        os.makedirs(path, exist_ok=True)
    if os.access(path, os.W_OK):
        config.update("jax_compilation_cache_dir", path)
        config.update("jax_compilation_cache_max_size", PROGRAMS_BYTES)


def compile_quickly() -> None:
    """Makes XLA leave out most optimisations of this process's programs, unless XLA_FLAGS is set.

    Compilation is nearly all of a run of a few steps, and this saves four fifths of it on CPUs. The
    programs run slower and round in other places. XLA reads the variable when JAX opens its
    devices: call it before.
    """
    os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))


def programs_dir() -> str:
    """Returns the directory of compiled programs for this kind of CPU.

    XLA's programs for a CPU use all its instructions. On another CPU that shares the home directory
    they could fail.
    """
    known = platform.machine() + platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        wanted = ("model name", "flags", "Features", "CPU part")
        known += "".join(line for line in info.read().split("\n\n")[0].splitlines(True)
                         if line.startswith(wanted))  # fmt: skip
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(root, "sip", "programs", hashlib.sha256(known.encode()).hexdigest()[:16])
