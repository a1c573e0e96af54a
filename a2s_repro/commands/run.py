"""How a command ends: its exit status, and one sentence for an error that the user can put right.

0    done
1    the check failed: a number beyond its gate, a recipe that does not train
2    wrong input: an option, a file, a device; or a package that is not installed
3    some inputs could not be read; all others are done
130  interrupted by Ctrl-C
141  the reader of the output has gone, as `| head` does
143  stopped by SIGTERM, with a snapshot written; in general 128 + the number of the signal
"""

import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from a2s_repro.errors import InputError, ToldElsewhere, first_line, printable
from a2s_repro.runtime import memory

FAILED = 1
WRONG_INPUT = 2
PARTLY_DONE = 3
INTERRUPTED = 130
NO_READER = 141


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and exits with its status, 0 for None."""
    memory.keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    warnings.formatwarning = lambda message, *_: f"warning: {printable(message)}\n"
    try:
        status = main() or 0
        sys.stdout.flush()
        if distributed := sys.modules.get("a2s_repro.runtime.distributed"):
            distributed.leave()
    except BrokenPipeError:
        status = NO_READER
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as error:
        status = INTERRUPTED
        print(f"interrupted: {printable(error)}" if str(error) else "interrupted.", file=sys.stderr)
    except ToldElsewhere:
        status = WRONG_INPUT
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("a2s_repro"):
            raise
        remedy = f"run `make setup` and use .venv/bin/a2s, or `pip install {error.name.partition('.')[0]}`"
        status = _refuse(f"{error.name} is not installed for {sys.executable}: {remedy}.")
    except FileExistsError as error:
        status = _refuse(f"{error.filename} is a file, where a folder is needed: give another path.")
    except OSError as error:
        status = _refuse(_sentence(error))
    except _input_errors() as error:
        status = _refuse(str(error))
    except (MemoryError, RuntimeError) as error:
        devices = sys.modules.get("a2s_repro.runtime.devices")
        if not (devices and devices.is_out_of_memory(error)):
            raise
        status = _refuse(f"there is too little memory ({first_line(error)}).")
    sys.exit(status)


def _sentence(error: OSError) -> str:
    if not isinstance(error.filename, str | bytes):
        return f"a file could not be read or written ({error.strerror or first_line(error)})."
    name = os.fsdecode(error.filename)
    if isinstance(error, FileNotFoundError):
        return f"{name} does not exist: correct the path."
    return f"{name}: {error.strerror or first_line(error)}."


def _input_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose message is a sentence for the user. Those of caffe_weights exist once something imported it."""
    caffe_weights = sys.modules.get("caffe_weights")
    return (InputError, caffe_weights.CaffeFileError) if caffe_weights else (InputError,)


def _refuse(sentence: str) -> int:
    """Prints the sentence on one line of stderr; under torchrun also in the report that torchrun prints at its end."""
    sentence = printable(sentence)  # names of files may hold escapes for the terminal, or lines like "error: ..."
    print(f"error: {sentence}", file=sys.stderr)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"message": f"error: {sentence}", "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": details}))
    return WRONG_INPUT
