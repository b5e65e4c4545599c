"""One process at a time writes a folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from plr.errors import RunError
from plr.signals import cleaned_up, deferred

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "locked", "process_is_gone"]

LOCK = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of some network file systems


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock file, which says who does, and remove it in the end.

    The operating system's lock on the file tells whether its holder lives: it goes with the process, whatever ends it.
    Where a file system has none, the file's content tells: host, process, and when that process and the machine began.
    What another host wrote cannot be judged from here.

    Raises:
        RunError: another process holds the lock; names it, and says what to do.
        OSError: the lock file cannot be written.
    """
    path = folder / LOCK
    held: list[int] = []  # the descriptor of the lock file, while it is this process's

    def release() -> None:
        while held:
            descriptor = held.pop()
            still = _is_still(descriptor, path)
            if still and fcntl is not None:
                path.unlink()  # before the lock goes: who waits for it sees that the file is another
            os.close(descriptor)
            if still and fcntl is None:  # Windows removes no open file
                path.unlink()

    with cleaned_up(release):
        with deferred():
            held.append(_acquire(path))
        yield


def _acquire(path: Path) -> int:
    """Return the open lock file, which is now this process's."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try_lock(descriptor, path):
                os.close(descriptor)
                return _acquire_without_locks(path)
            if _is_still(descriptor, path):
                _refuse_another_host(path, _read(descriptor), held=True)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _me(), 0)
                return descriptor
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise
        os.close(descriptor)


def _acquire_without_locks(path: Path) -> int:
    """Return the open lock file where a file system knows no locks: made with its content, in one step."""
    mine = path.with_name(f"{path.name}.{os.getpid()}")
    mine.write_bytes(_me())
    try:
        while True:
            try:
                os.link(mine, path)
                return os.open(path, os.O_RDWR)
            except FileExistsError:
                pass
            with suppress(FileNotFoundError):
                owner = _parsed(path.read_bytes())
                _refuse_another_host(path, owner, held=False)
                if not process_is_gone(owner.get("pid"), owner.get("boot"), owner.get("begun")):
                    raise RunError(_in_use(path, owner))
                path.unlink()
    finally:
        mine.unlink(missing_ok=True)


def _try_lock(descriptor: int, path: Path) -> bool:
    """Take the operating system's lock; returns whether there is such a thing here.

    Raises:
        RunError: another process has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise RunError(_in_use(path, _read(descriptor))) from error
        raise
    return True


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the file is still that of the path: its holder may have removed it since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, Any]:
    return _parsed(os.pread(descriptor, 4096, 0))


def _parsed(content: bytes) -> dict[str, Any]:
    """Return who holds the file; empty where nobody has written it yet."""
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _me() -> bytes:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot(), "begun": _begun(os.getpid())}
    return (json.dumps(owner) + "\n").encode()


def _refuse_another_host(path: Path, owner: dict[str, Any], *, held: bool) -> None:
    """Refuse what another host wrote; `held`: this process has the operating system's lock, so the writer has ended."""
    # A machine's name may change, as a container's does; what it is since its last start does not.
    same_machine = owner.get("boot") is not None and owner.get("boot") == _boot()
    if owner and owner.get("host") != socket.gethostname() and not (held and same_machine):
        raise RunError(
            f"{path.parent}: {_named(owner)} writes here, or was ended without a chance to tidy up; which of both "
            f"cannot be seen from host {socket.gethostname()!r}. If it has ended, delete {path} and repeat the command"
        )


def process_is_gone(pid: Any, boot: Any = None, begun: Any = None) -> bool:
    """Whether a process of this host has ended: none has its number, or one that began at another time."""
    if boot is not None and _boot() is not None and boot != _boot():
        return True
    if not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
        return True
    if not _exists(pid):
        return True
    return begun is not None and _begun(pid) is not None and begun != _begun(pid)


def _exists(pid: int) -> bool:
    """Whether a process has the number, this user's or another's."""
    if sys.platform == "win32":  # where os.kill(pid, 0) sends Ctrl-C
        import ctypes

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        synchronize, invalid_parameter, still_running = 0x100000, 87, 0x102
        handle = kernel.OpenProcess(synchronize, False, pid)
        if not handle:
            return ctypes.get_last_error() != invalid_parameter
        try:
            return kernel.WaitForSingleObject(ctypes.c_void_p(handle), 0) == still_running
        finally:
            kernel.CloseHandle(ctypes.c_void_p(handle))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def _in_use(path: Path, owner: dict[str, Any]) -> str:
    who = _named(owner) if owner else "another process"
    return f"{path.parent}: {who} is writing here; wait for it, or choose another --out"


def _named(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on host {owner.get('host')!r}"


def _boot() -> str | None:
    """What tells this start of the machine from others; None where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _begun(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
