"""What every command line here shares: a clear word before installation, one sentence for an error, exit codes.

Imported first by each tool. Exit status: 0 done, 1 the check that was asked for failed, 2 wrong input, 130 interrupted,
141 nobody reads the output, 143 stopped by SIGTERM after what had to be saved.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# torch asks for large tensors in pages of 2 MB: an update on the CPU then has a tenth of the page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _excepthook(kind: type[BaseException], *details: Any) -> None:
    """Ctrl-C while the modules are still loading, which takes seconds, needs no traceback either."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, *details)


sys.excepthook = _excepthook

try:
    from a2s_repro.errors import InputError, ToldElsewhere, first_line
    from a2s_repro.runtime import distributed
    from a2s_repro.runtime.devices import is_out_of_memory, keep_freed_memory
    from caffe_weights import CaffeFileError
except ImportError as missing:
    sys.exit(
        f"{missing.name or missing} is not installed for {sys.executable}: run `make setup`, "
        f"then `.venv/bin/python {' '.join(sys.argv)}`."
    )


def run(main: Callable[[], int | None]) -> None:
    """Runs `main` and exits with its status; errors that a user can put right become one sentence on stderr."""
    keep_freed_memory()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        status = main() or 0
        sys.stdout.flush()
        distributed.leave()
    except ToldElsewhere:
        status = 2
    except (InputError, CaffeFileError) as error:
        status = 2
        _tell(f"error: {error}")
    except BrokenPipeError:  # `| head` has seen enough
        status = 141
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except FileExistsError as error:
        status = 2
        _tell(f"error: {error.filename} is a file, where a folder is needed: give another path.")
    except OSError as error:
        status = 2
        _tell(f"error: {error.filename or 'file'}: {error.strerror or error}.")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        status = 2
        _tell(f"error: there is too little memory ({first_line(error)}).")
    except KeyboardInterrupt:
        status = 130
        print("interrupted.", file=sys.stderr)
    sys.exit(status)


def _tell(sentence: str) -> None:
    """On stderr, and where torchrun has started the process also at the end of the report that torchrun prints."""
    print(sentence, file=sys.stderr)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": details}))
