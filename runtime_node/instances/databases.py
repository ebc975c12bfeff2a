"""The data directories of apps, `<data-dir>/apps/<app>.<uid>/`, and the database URL each app gets.

Ids are checked before they come here; a path that would leave the data directory is refused all the same.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.instances.rules import app_id
from services.rpc.errors import SupervisorError


class Databases:
    """Provides and removes what apps keep on this node. Methods block on the disk; repeats are harmless."""

    def __init__(self, data_dir: Path) -> None:
        self._apps = data_dir.resolve() / "apps"

    def directory(self, app: str, uid: str) -> Path:
        """Return the directory of one app. Raises ValueError when the ids do not make one name."""
        path = self._apps / f"{app}.{uid}"
        if path.parent != self._apps or path.name != f"{app}.{uid}" or not app or not uid:
            raise ValueError(f"{app!r} and {uid!r} do not name a directory")
        return path

    def provide(self, spec: InstanceSpec) -> tuple[Path, str | None]:
        """Make the app's directory if need be; return it and the URL of its database, or None for none.

        Raises SupervisorError DATABASE_UNAVAILABLE when the directory cannot be made or written.
        """
        directory = self.directory(app_id(spec.name), spec.app_uid)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as fault:
            raise SupervisorError(
                "DATABASE_UNAVAILABLE",
                f"The app's data directory cannot be made: {fault.strerror or type(fault).__name__}.",
                resource=spec.name,
            ) from fault
        kind = spec.database.WhichOneof("kind")
        if kind == "no_database":
            return directory, None
        if kind == "external":
            return directory, spec.secret_env[spec.database.external.secret_key]
        return directory, f"sqlite:///{directory / 'app.db'}"

    def purge(self, app: str, uid: str) -> None:
        """Remove the app's directory and all in it; one that is not there is fine. Raises OSError."""
        directory = self.directory(app, uid)
        # Renamed first, so that a purge that is cut short never leaves half an app behind under its name.
        doomed = directory.with_name(f".purged.{directory.name}")
        if doomed.exists():
            shutil.rmtree(doomed)
        if directory.exists():
            directory.rename(doomed)
            shutil.rmtree(doomed)

    def finish_purges(self) -> None:
        """Remove what a purge left that was cut short by the end of the process."""
        if self._apps.is_dir():
            for doomed in self._apps.glob(".purged.*"):
                shutil.rmtree(doomed, ignore_errors=True)
