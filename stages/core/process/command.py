"""The command line of a stage: its options are the parameters of its `main`, its errors one line each."""

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

from stages.core.process import memory
from stages.core.process.errors import UserError
from stages.core.process.guard import guarded


def entry(main: Callable[..., None]) -> None:
    """Run a stage: each parameter of `main` is a required option of the same name.

    Parameters annotated `Path` arrive as paths, the others as strings. A `UserError` ends in one line on
    standard error and exit status 1, and so does a shortage of memory; Ctrl-C ends in one line and status 130. Where
    nobody reads the output any more, it ends in silence.
    """
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(main)))
    for name, parameter in inspect.signature(main).parameters.items():
        kind = Path if parameter.annotation is Path else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, required=True)
    arguments = vars(parser.parse_args())
    try:
        with guarded():
            main(**arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as shells say it of SIGINT
    except BrokenPipeError:
        # Whoever read the output, as `head` does, has enough of it. Nothing is left to flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as shells say it of SIGPIPE
    except UserError as error:
        message = str(error)
    except Exception as error:
        if not memory.is_shortage(error):
            raise
        message = memory.shortage(Path(sys.modules[main.__module__].__file__).stem, error)
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
