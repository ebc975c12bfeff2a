"""The data directories of apps, `<data-dir>/apps/<app>.<uid>/`, and the database URL each app gets.

Ids are checked before they come here; a path that would leave the data directory is refused all the same.
Each directory is marked with the uid of its app, so that nobody takes an empty or another one for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from pathlib import Path

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.data_directory import sync_directory
from runtime_node.removal import finish_removals, remove_directory
from runtime_node.rules import app_id
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.instances")

OWNER = ".owner"
DATABASE = "app.db"
_NEW_OWNER = f"{OWNER}.new"
_LONGEST_UID = 64

LEFT = "-left"
"""What the mark of a directory says whose app has gone to another node with its data; no uid begins so."""
ARRIVED = ".arrived"
"""In a directory that has come from another node, until an instance is started on it."""


class Databases:
    """Provides and removes what apps keep on this node. Methods block on the disk; repeats are harmless."""

    def __init__(self, data_dir: Path) -> None:
        self._apps = data_dir.resolve() / "apps"
        self.staging = data_dir.resolve() / "travel"
        """Where directories are that come from other nodes, until all of one is here."""
        self._aside = data_dir.resolve() / "aside"

    @property
    def root(self) -> Path:
        """Where the directories are; it may not be there yet."""
        return self._apps

    def directory(self, app: str, uid: str) -> Path:
        """Return the directory of one app. Raises ValueError when the ids do not make one name."""
        path = self._apps / f"{app}.{uid}"
        if path.parent != self._apps or path.name != f"{app}.{uid}" or not app or not uid:
            raise ValueError(f"{app!r} and {uid!r} do not name a directory")
        return path

    def provide(self, spec: InstanceSpec) -> tuple[Path, str | None]:
        """Make the app's directory if need be; return it and the URL of its database, or None for none.

        Raises SupervisorError DATABASE_UNAVAILABLE when the directory cannot be made or written, or is
        another app's; DATA_MISSING when the app has served before and its directory is not here.
        """
        directory = self.directory(app_id(spec.name), spec.app_uid)
        kind = spec.database.WhichOneof("kind")
        needed = spec.requires_existing_data and kind in (None, "sqlite")
        try:
            self._claim(directory, spec, needed=needed)
        except OSError as fault:
            raise SupervisorError(
                "DATABASE_UNAVAILABLE",
                f"The app's data directory cannot be made: {fault.strerror or type(fault).__name__}.",
                resource=spec.name,
            ) from fault
        if kind == "no_database":
            return directory, None
        if kind == "postgres":
            return directory, spec.database_url
        if kind == "external":
            return directory, spec.secret_env[spec.database.external.secret_key]
        return directory, f"sqlite:///{directory / DATABASE}"

    def _claim(self, directory: Path, spec: InstanceSpec, *, needed: bool) -> None:
        """Mark the directory as the app's, unless it is already. Raises OSError and SupervisorError."""
        mark = directory / OWNER
        owner = _read(mark)
        if owner == spec.app_uid:
            (directory / ARRIVED).unlink(missing_ok=True)
            return
        if owner == LEFT:
            if needed:
                raise SupervisorError(
                    "DATA_MISSING", "The app's data has gone to another node with it.", resource=spec.name
                )
            self.make_room(app_id(spec.name), spec.app_uid)
            owner = None
        if owner is not None:
            raise SupervisorError(
                "DATABASE_UNAVAILABLE",
                "The data directory of this name is another app's.",
                resource=spec.name,
            )
        # Of before there were marks: the name tells whose it is, and it was used.
        used = directory.is_dir() and any(directory.iterdir())
        if needed and not used:
            raise SupervisorError(
                "DATA_MISSING",
                "The app has served before, and its data is not on this node. Put the data directory back, "
                "or start the app with accept_data_loss to let it begin on a new, empty database.",
                resource=spec.name,
            )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{spec.app_uid}\n")

    def hand_over(self, app: str, uid: str, to_app: str, to_uid: str) -> None:
        """Make one app's directory another app's, on the disk; a repeat goes on where one was cut short.

        Raises SupervisorError DATA_MISSING if it is not here; DATABASE_UNAVAILABLE if it is a third app's,
        the other app has one of its own, something else stands in a place, or the disk refuses.
        """
        source, target = self.directory(app, uid), self.directory(to_app, to_uid)
        try:
            self._hand_over(source, uid, target, to_uid)
        except OSError as fault:
            raise SupervisorError(
                "DATABASE_UNAVAILABLE",
                f"The data directory of apps/{app} cannot be handed over: "
                f"{fault.strerror or type(fault).__name__}.",
                resource=f"apps/{to_app}",
                metadata={"uid": uid},
            ) from fault

    def _hand_over(self, source: Path, uid: str, target: Path, to_uid: str) -> None:
        here = os.path.lexists(source)
        if os.path.lexists(target):
            if here or owner_of(target) != to_uid:
                raise _refused(f"{target.name} is there already, with data of its own", uid)
            sync_directory(self._apps)
            return
        if not here:
            raise SupervisorError(
                "DATA_MISSING", f"The data of {source.name} is not on this node.", metadata={"uid": uid}
            )
        # By its descriptor from here on: a link that is put into its place meanwhile leads nowhere.
        folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            owner = _read(OWNER, folder)
            if owner not in (None, uid, to_uid):
                raise _refused(f"the data of {source.name} is another app's by its mark", uid)
            # The mark first, and whole: at any moment it names one owner. Under its old name the directory
            # is refused to the app before, and the other one doesn't find it, until this is repeated.
            if owner != to_uid:
                _replace_mark(folder, to_uid)
        finally:
            os.close(folder)
        source.rename(target)
        sync_directory(self._apps)

    def leave(self, app: str, uid: str) -> None:
        """Mark the app's directory as left, on the disk; one that is not there is fine. Raises OSError."""
        try:
            folder = os.open(
                self.directory(app, uid), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except FileNotFoundError:
            return
        try:
            if _read(OWNER, folder) in (None, uid):
                _replace_mark(folder, LEFT)
        finally:
            os.close(folder)

    def make_room(self, app: str, uid: str) -> None:
        """Let nothing stand where the app's directory is to come. Raises OSError.

        What the app has left, or was never started on, is removed; anything else is kept, put aside.
        """
        place = self.directory(app, uid)
        if not os.path.lexists(place):
            return
        if not place.is_symlink():
            names = {entry.name for entry in os.scandir(place)}
            if owner_of(place) == LEFT or ARRIVED in names or names <= {OWNER, _NEW_OWNER}:
                remove_directory(place)
                return
        self._aside.mkdir(mode=0o700, exist_ok=True)
        kept = self._aside / f"{place.name}.{secrets.token_hex(4)}"
        place.rename(kept)
        sync_directory(self._apps)
        log.warning(
            "an app comes with its data, and had other data here: that is put aside",
            extra={"action": "app.data_put_aside", "app": app, "uid": uid, "place": str(kept)},
        )

    def mark_arrived(self, directory: Path, uid: str, freeze_id: str) -> None:
        """Mark a directory as the app's, and as come from another node. Raises OSError."""
        (directory / ARRIVED).write_text(f"{freeze_id}\n", encoding="ascii")
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _replace_mark(folder, uid)
        finally:
            os.close(folder)

    def put_in_place(self, directory: Path, app: str, uid: str) -> None:
        """Make a directory the app's, on the disk; nothing may be there yet. Raises OSError."""
        self._apps.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self.directory(app, uid)
        if os.path.lexists(place):
            raise FileExistsError(errno.EEXIST, "the app has data here already", str(place))
        directory.rename(place)
        sync_directory(self._apps)
        sync_directory(directory.parent)

    def purge(self, app: str, uid: str) -> bool:
        """Remove the app's directory and all in it; return whether there was one. Raises OSError."""
        directory = self.directory(app, uid)
        was_there = os.path.lexists(directory)
        remove_directory(directory)
        return was_there

    def finish_purges(self) -> None:
        """Remove what a purge left that was cut short by the end of the process."""
        finish_removals(self._apps)


def owner_of(directory: Path) -> str | None:
    """Return the uid in a directory's mark, None where there is none; never by a link. Raises OSError."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _read(OWNER, folder)
    finally:
        os.close(folder)


def _read(mark: Path | str, folder: int | None = None) -> str | None:
    """Return the uid in a mark, None where there is none (or one that was cut short)."""
    try:
        descriptor = os.open(mark, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        return file.read(_LONGEST_UID + 1).decode("ascii", "replace").strip() or None


def _replace_mark(folder: int, uid: str) -> None:
    """Put another uid into a directory's mark: on the disk, all of it or nothing."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_NEW_OWNER, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(_NEW_OWNER, flags, 0o600, dir_fd=folder)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(f"{uid}\n")
        file.flush()
        os.fsync(descriptor)
    os.rename(_NEW_OWNER, OWNER, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _refused(why: str, uid: str) -> SupervisorError:
    return SupervisorError("DATABASE_UNAVAILABLE", f"{why[0].upper()}{why[1:]}.", metadata={"uid": uid})
