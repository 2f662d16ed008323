"""What no file may make a process do: run code that is not installed, unpickle, evaluate, start programs, connect.

guard = Guard()
guard.on = True            # from here on such a thing is an error, and stands in guard.seen as well
"""

import importlib.metadata
import sys
from importlib.machinery import PathFinder
from types import CodeType, FrameType
from typing import Any

NEVER = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen"),
    *("pty.spawn", "os.startfile", "webbrowser.open", "socket.connect", "pickle.find_class", "code.__new__"),
)
"""Events of Python (`sys.audit`) that reading a file has no use for."""
MAKERS = ("dataclasses.py", "collections/__init__.py", "typing.py", "enum.py", "functools.py", "inspect.py")
"""Of Python: they make classes and read annotations by evaluating texts of their own."""
CHECKERS = ("beartype", "jaxtyping", "typeguard", "flax", "equinox", "tyro")
"""Packages that do the same, when a class of theirs is made."""


class CodeRun(RuntimeError):
    """A file made the process do what no file may."""


class Guard:
    """Watches this process, for good; it objects while it is `on`."""

    def __init__(self, inside_run: str = "/programs/"):
        self.on, self.seen, self._programs = False, list[str](), inside_run
        top = importlib.metadata.packages_distributions()
        self._installed = {*sys.stdlib_module_names, *top, *{name.partition(".")[0] for name in sys.modules}}
        sys.addaudithook(self._hook)
        sys.meta_path.insert(0, self)  # importlib.import_module is no event

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and (said := self._forbidden(event, args)):
            self._object(said)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Of no module; a finder is asked for each that is not imported yet. What is nowhere may be looked for."""
        mine = name.partition(".")[0] in self._installed
        if self.on and not mine and PathFinder.find_spec(name, path) is not None:
            self._object(f"import of {name}")

    def _object(self, said: str) -> None:
        self.seen.append(said)
        raise CodeRun(said)

    def _forbidden(self, event: str, args: tuple[Any, ...]) -> str:
        """What is wrong with an event; "" for nothing."""
        if event in NEVER and not (event == "pickle.find_class" and _in_a_queue(sys._getframe(2))):
            return f"{event} {args!r:.200}"
        if event in ("exec", "marshal.loads", "marshal.load"):  # to ask for a frame is an event, too
            caller = sys._getframe(2)
            if not (_importing(args[0], caller) or (event == "exec" and _makes_classes(caller))):
                return f"{event} of {args[0]!r:.100} from {caller.f_code.co_filename}:{caller.f_lineno}"
        if event == "open" and isinstance(args[0], str) and self._programs in args[0]:
            return f"open of {args[0]}"
        return ""


def _importing(what: object, caller: FrameType) -> bool:
    """Whether it is a module that is imported, whose name is looked at by itself."""
    named = not isinstance(what, CodeType) or not what.co_filename.startswith("<string")
    return named and "importlib" in caller.f_code.co_filename


def _in_a_queue(caller: FrameType | None) -> bool:
    """Whether a process talks to itself: tensorboardX has a queue of events."""
    while caller is not None and "multiprocessing/queues" not in caller.f_code.co_filename:
        caller = caller.f_back
    return caller is not None


def _makes_classes(caller: FrameType | None) -> bool:
    """Whether it comes from a maker, perhaps out of the code that it made."""
    while caller is not None:
        place = caller.f_code.co_filename
        if place.endswith(MAKERS) or any(f"/{name}/" in place for name in CHECKERS):
            return True
        caller = caller.f_back if place.startswith("<") else None
    return False
