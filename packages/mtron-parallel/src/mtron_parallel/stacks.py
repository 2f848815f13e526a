"""Where code is: the one line of a stack that tells a user most. Imports no torch."""

import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

_FOLDER = Path(__file__).parent
_COMMUNICATION = frozenset(
    str(_FOLDER / name) for name in ("collectives.py", "launched.py", "stacks.py", "watch.py")
)


def place_of_error(error: BaseException) -> str | None:
    """Return where an error arose, such as `loader.py:123 in _read`.

    It is the innermost frame that belongs neither to torch, nor to the standard library, nor to the
    modules of this package through which every communication goes; where there is no such frame,
    the innermost. None for an error that was never raised.
    """
    return _innermost(reversed(list(traceback.walk_tb(error.__traceback__))))


def place_of_thread(identifier: int | None) -> str | None:
    """Return where a thread of this process is now, in the form of `place_of_error`.

    Args:
        identifier: `threading.Thread.ident`. For a thread that does not run the answer is None.
    """
    frame = sys._current_frames().get(-1 if identifier is None else identifier)
    return None if frame is None else _innermost(traceback.walk_stack(frame))


def _innermost(walk: Iterable[tuple[FrameType, int]]) -> str | None:
    """Describe the first frame worth naming of a walk that begins at the innermost."""
    first = None
    libraries = _library_folders()
    for frame, line in walk:
        code = frame.f_code
        place = f"{Path(code.co_filename).name}:{line} in {code.co_name}"
        first = first or place
        if not _is_library(code.co_filename, libraries):
            return place
    return first


def _is_library(file: str, folders: tuple[str, ...]) -> bool:
    if file.startswith("<frozen") or file in _COMMUNICATION:
        return True
    # A standard library that is not in a virtual environment holds everybody's site-packages.
    standard, *others = folders
    in_standard = file.startswith(standard) and "-packages" not in file
    return in_standard or file.startswith(tuple(others))


def _library_folders() -> tuple[str, ...]:
    """Folders of the standard library (first) and of torch, if that is loaded."""
    folders = [sysconfig.get_path("stdlib") + "/"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.__file__ is not None:
        folders.append(f"{Path(torch.__file__).parent}/")
    return tuple(folders)
