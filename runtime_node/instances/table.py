"""Which instances are on this node: by name, by app, and those that run. Tells nobody, decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sortedcontainers import SortedDict

from runtime_node.instances.record import Instance


class InstanceTable:
    """Written on the control loop alone; methods that say so may be called from any thread."""

    def __init__(self, max_instances: int) -> None:
        self.max_instances = max_instances
        self.draining = False
        """The node is shutting down."""
        self._by_name: SortedDict[str, Instance] = SortedDict()
        self._by_app: dict[str, Instance | tuple[Instance, ...]] = {}
        """Most have one: a tuple around each would cost as much as what stands in it."""
        self.running: dict[str, Instance] = {}
        """Instances that are RUNNING, by name: what the housekeeping looks at."""

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, instance: Instance) -> None:
        """Take an instance in, as the newest of its app."""
        self._by_name[instance.name] = instance
        before = self.of_app(instance.app)
        self._by_app[instance.app] = (*before, instance) if before else instance

    def remove(self, instance: Instance) -> bool:
        """Take an instance out; return whether it was here."""
        if self._by_name.get(instance.name) is not instance:
            return False
        del self._by_name[instance.name]
        rest = tuple(other for other in self.of_app(instance.app) if other is not instance)
        if rest:
            self._by_app[instance.app] = rest if len(rest) > 1 else rest[0]
        else:
            del self._by_app[instance.app]
        self.running.pop(instance.name, None)
        return True

    def find(self, name: str) -> Instance | None:
        """Return an instance, None if it is not here. Any thread."""
        found: Instance | None = self._by_name.get(name)
        return found

    def of_app(self, app: str) -> tuple[Instance, ...]:
        """Return the instances of an app by its id, in the order they were accepted. Any thread."""
        found = self._by_app.get(app, ())
        return found if isinstance(found, tuple) else (found,)

    def all(self) -> Sequence[Instance]:
        """Return every instance, in no order. Any thread."""
        # One call into C over the dict itself: nothing can change it meanwhile.
        return tuple(dict.values(self._by_name))

    def after(self, name: str, prefix: str) -> Iterator[Instance]:
        """Yield those whose names begin with `prefix` and come after `name`, in order."""
        for found in self._by_name.irange(minimum=name, inclusive=(False, True)):
            if not found.startswith(prefix):
                return
            yield self._by_name[found]
