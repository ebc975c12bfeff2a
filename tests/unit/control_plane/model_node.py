"""A node as a table of instances: takes the calls that a plan names, by the rules of the contract."""

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from services.rpc.errors import SupervisorError

BAD = "bad:app"


class ModelNode:
    """Instances by name. Nothing happens by itself: `step` moves one instance on."""

    def __init__(self) -> None:
        self.instances: dict[str, pb.Instance] = {}
        self.entrypoints: dict[str, str] = {}
        self.specs: dict[str, bytes] = {}
        self.fences: dict[str, tuple[int, int]] = {}
        self.purging: set[str] = set()
        self.purged: list[str] = []
        self.calls = 0

    def start(self, spec: pb.InstanceSpec) -> None:
        self.calls += 1
        wire = spec.SerializeToString(deterministic=True)
        if self.specs.get(spec.name) == wire:
            return
        version, fence = (spec.epoch, spec.generation), self.fences.get(spec.app_uid, (0, 0))
        if version < fence:
            raise SupervisorError("STALE_EPOCH", "Older.", metadata={"known_epoch": str(fence[0])})
        if spec.name in self.instances:
            raise SupervisorError("INSTANCE_EXISTS", "Other.")
        self.fences[spec.app_uid] = version
        self.specs[spec.name] = wire
        self.entrypoints[spec.name] = spec.entrypoint
        self.instances[spec.name] = pb.Instance(
            name=spec.name,
            app_uid=spec.app_uid,
            generation=spec.generation,
            epoch=spec.epoch,
            state=pb.Instance.IDLE if spec.activation == pb.InstanceSpec.ON_REQUEST else pb.Instance.PENDING,
            health=pb.Instance.Health.UNKNOWN,
        )

    def stop(self, request: pb.StopInstanceRequest) -> None:
        self.calls += 1
        found = self.instances.get(request.name)
        if found is not None and found.app_uid != request.app_uid:
            found = None
        if found is not None and request.epoch < found.epoch:
            raise SupervisorError("STALE_EPOCH", "Older.")
        uid = request.app_uid
        self.fences[uid] = max(self.fences.get(uid, (0, 0)), (request.epoch, 0))
        if request.purge_data:
            self.purging.add(uid)
        if found is not None:
            found.state = pb.Instance.STOPPING
        self._purge()

    def step(self, name: str) -> None:
        """Move an instance on: to ready or failed, or out."""
        instance = self.instances[name]
        if instance.state == pb.Instance.STOPPING:
            del self.instances[name], self.specs[name], self.entrypoints[name]
            self._purge()
        elif instance.state == pb.Instance.PENDING:
            instance.state = pb.Instance.STARTING
        elif instance.state == pb.Instance.STARTING:
            if self.entrypoints[name] == BAD:
                self.crash(name, "APP_STARTUP_FAILED")
            else:
                instance.state, instance.health = pb.Instance.RUNNING, pb.Instance.Health.HEALTHY

    def crash(self, name: str, reason: str = "APP_CRASHED") -> None:
        instance = self.instances[name]
        if instance.state not in (pb.Instance.STOPPING, pb.Instance.IDLE):
            instance.state, instance.health = pb.Instance.FAILED, pb.Instance.Health.UNHEALTHY
            instance.last_error.reason, instance.last_error.message = reason, "It broke."

    def retry(self, name: str) -> None:
        """Let the restart policy start a failed instance again."""
        if self.instances[name].state == pb.Instance.FAILED:
            self.instances[name].state, self.instances[name].health = (
                pb.Instance.PENDING,
                pb.Instance.Health.UNKNOWN,
            )

    def restart(self) -> None:
        """Begin a new life, which knows nothing of the one before."""
        self.instances.clear()
        self.specs.clear()
        self.entrypoints.clear()
        self.fences.clear()
        self.purging.clear()

    def snapshot(self) -> dict[str, pb.Instance]:
        copies = {}
        for name, instance in self.instances.items():
            copies[name] = pb.Instance()
            copies[name].CopyFrom(instance)
        return copies

    def _purge(self) -> None:
        alive = {instance.app_uid for instance in self.instances.values()}
        for uid in sorted(self.purging - alive):
            self.purging.discard(uid)
            self.purged.append(uid)


def app(entrypoint: str = "good:app", **fields: object) -> App:
    return App(entrypoint=entrypoint, **fields)  # type: ignore[arg-type]
