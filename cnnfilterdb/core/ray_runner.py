"""Ray as a runner: a cluster, or this machine; needs the extra ``ray``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from cnnfilterdb.core.errors import MissingExtraError, RemoteError
from cnnfilterdb.core.runners import Demand, Runner

__all__ = ["Ray"]

T = TypeVar("T")

#: Share of the memory of a node that a unit may ask for: a unit that no node can hold would wait forever.
_MOST = 0.9


class Ray(Runner):
    """A Ray cluster, which is connected to at the first run; without one, Ray is started on this machine.

    Args:
        address: ``ray``: the cluster that ``RAY_ADDRESS`` names or that runs on this machine, or else a new one;
            ``ray://HOST:PORT``: the one at that address.
        workers: Number of processors of Ray, where it is started here.
    """

    remote = True

    def __init__(self, address: str, workers: int) -> None:
        self.name = address
        self._wanted = workers
        self._lock = threading.Lock()
        self._started = False  # by this object

    @property
    def workers(self) -> int:  # type: ignore[override]
        """Processors of the cluster now."""
        ray = self._connect()
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def _open(self, demand: Demand) -> Executor:
        return _RayExecutor(self._connect(), demand)

    def _connect(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError(f"runner {self.name}: needs Ray; pip install 'cnnfilterdb[ray]'") from error
        with self._lock:
            if ray.is_initialized():
                return ray
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
            try:
                if self.name != "ray":
                    ray.init(self.name, **quiet)
                else:
                    try:
                        ray.init("auto", **quiet)
                    except ConnectionError:
                        ray.init(num_cpus=self._wanted, include_dashboard=False, **quiet)
            except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise RemoteError(
                    f"{self.name}: no Ray cluster can be reached ({reason}); check the address"
                ) from error
            self._started = True
            return ray

    def stop(self, *, now: bool = False) -> None:
        """See :meth:`Runner.stop`; a cluster that was there goes on."""
        with self._lock:
            started, self._started = self._started, False
        if started:
            import ray

            ray.shutdown()

    def __reduce__(self) -> tuple[type[Ray], tuple[str, int]]:
        return Ray, (self.name, self._wanted)


class _RayExecutor(Executor):
    """Submits units as tasks of Ray, each with the processors and the memory that it needs."""

    def __init__(self, ray: Any, demand: Demand) -> None:
        self._ray = ray
        memory = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
        most = int(_MOST * max(memory, default=0))
        # Units that are lost are retried by the runner, for every engine by the same rule.
        self._task = ray.remote(_call).options(
            num_cpus=demand.cpus, memory=min(demand.memory, most) or None, max_retries=0
        )

    def submit(self, function: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        reference = self._task.remote(function, args, options)
        future = _RayFuture(self._ray, reference)
        reference.future().add_done_callback(future.settle)
        return future


class _RayFuture(Future[Any]):
    """The future of a task, which can be cancelled while it runs."""

    def __init__(self, ray: Any, reference: Any) -> None:
        super().__init__()
        self._ray, self._reference = ray, reference

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        self._ray.cancel(self._reference, force=True)
        self.set_running_or_notify_cancel()
        return True

    def settle(self, done: Future[Any]) -> None:
        """Take the result of the task, or its error in the form that all runners have."""
        if not self.set_running_or_notify_cancel_once():
            return
        error = done.exception()
        if error is None:
            self.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            self.set_exception(error.cause)
        else:  # the worker, its node or the result was lost
            lost = ConnectionError(" ".join(str(error).split())[:200])
            lost.__cause__ = error
            self.set_exception(lost)

    def set_running_or_notify_cancel_once(self) -> bool:
        """Whether the future still waits for its result; False after it was cancelled."""
        return False if self.cancelled() else self.set_running_or_notify_cancel()


def _call(function: Callable[..., T], args: tuple[Any, ...], options: dict[str, Any]) -> T:
    return function(*args, **options)
