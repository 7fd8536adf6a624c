"""The services of the mesh, in one table.

`atelier up`, channels, the gateway's routes and health probes, and the tests derive from it what they need to know of a
service. A new service is an entry here, its folder and its contracts.

Entries are read when they are needed, never copied at import: a test adds a service by putting a longer table here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshkit.auth import MESH, WORKER

# What joins a service to the rest of the mesh: addresses, and the secrets that open them.
DATABASE = frozenset({"ATELIER_DATABASE_URL"})
NATS = frozenset({"ATELIER_NATS_URL"})
OBJECTS = frozenset({"ATELIER_S3_ENDPOINT", "ATELIER_S3_ACCESS_KEY", "ATELIER_S3_SECRET_KEY", "ATELIER_S3_BUCKET"})
TOKENS = frozenset({"ATELIER_AUTH_SECRET"})
MEDIA = frozenset({"ATELIER_PUBLIC_URL", "ATELIER_MEDIA_SECRET"})


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service of the mesh.

    Attributes:
        role: What its process is called, in logs, in `atelier status`, in settings (`ATELIER_TASKS_ADDRESS`).
        module: Its package, run as `python -m`; its migrations are in `<module>.migrations`.
        grpc: Full names of the gRPC services that it serves.
        port: Port that it listens on unless told otherwise; 0 lets the system choose, for one that is not called by a
            fixed address.
        schema: Its PostgreSQL schema; empty where it has none.
        scopes: Scopes of the token that it signs for its own calls; none where it forwards its callers' tokens.
        calls: Roles of the services that it calls.
        joins: Settings that join it to the mesh beside those of its database and of the services that it calls.
        health: Name that health checks ask for; empty for the process as a whole.
        routed: Whether the gateway serves the HTTP routes of its contracts.
        fronts: Whether it is the gateway: it speaks HTTP and calls every service that is routed.
    """

    role: str
    module: str
    grpc: tuple[str, ...] = ()
    port: int = 0
    schema: str = ""
    scopes: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    joins: frozenset[str] = frozenset()
    health: str = ""
    routed: bool = False
    fronts: bool = False

    @property
    def migrations(self) -> str:
        """Package of its migrations."""
        return f"{self.module}.migrations"

    @property
    def packages(self) -> tuple[str, ...]:
        """Proto packages of its gRPC services."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.grpc))

    @property
    def address(self) -> str:
        """Address that it listens on unless told otherwise."""
        return f"127.0.0.1:{self.port}"

    @property
    def is_worker(self) -> bool:
        """Whether it takes leases: it then has a name of its own and a folder for its files."""
        return WORKER in self.scopes

    @property
    def uses(self) -> frozenset[str]:
        """The settings that join it to the mesh. Of all joining settings a process gets these alone."""
        called = (*self.calls, *(one.role for one in routable())) if self.fronts else self.calls
        addresses = frozenset(map(address_setting, called))
        return self.joins | addresses | (DATABASE if self.schema else frozenset())


TASKS = ServiceSpec(
    role="tasks",
    module="services.tasks",
    grpc=(
        "atelier.tasks.v1.TasksService",
        "atelier.tasks.v1.WorkerService",
        "atelier.tasks.v1.JobsService",
        "atelier.tasks.v1.WebhookService",
        "atelier.tasks.v1.TaskMonitoringService",
        "atelier.tasks.v1.ScalingService",
        "atelier.tasks.v1.UsageService",
        "atelier.tasks.v1.RetentionService",
    ),
    port=9101,
    schema="tasks",
    joins=NATS | OBJECTS | TOKENS | MEDIA,
    routed=True,
)
WORKFLOWS = ServiceSpec(
    role="workflows",
    module="services.workflows",
    grpc=("atelier.workflows.v1.WorkflowsService", "atelier.workflows.v1.WorkflowMonitoringService"),
    port=9102,
    schema="workflows",
    scopes=(MESH,),
    calls=("tasks", "training"),
    joins=NATS | OBJECTS | TOKENS,
    routed=True,
)
TRAINING = ServiceSpec(
    role="training",
    module="services.training",
    grpc=(
        "atelier.training.v1.TrainingService",
        "atelier.training.v1.TrainerService",
        "atelier.training.v1.LoraService",
    ),
    port=9103,
    schema="training",
    scopes=(MESH,),
    calls=("tasks",),
    joins=NATS | OBJECTS | TOKENS | MEDIA,
    routed=True,
)
INFERENCE = ServiceSpec(
    role="worker",
    module="services.inference",
    grpc=("atelier.inference.v1.InferenceService",),
    scopes=(WORKER,),
    calls=("tasks",),
    joins=NATS | OBJECTS | TOKENS | {"ATELIER_MODEL", "ATELIER_WORKER_TOKEN"},
)
# A worker that calls providers and has no device, beside the one that has. It is no service more: whoever starts a mesh
# may start it, and `SERVICES` has its gRPC service already.
CALLER = replace(INFERENCE, role="providers", joins=INFERENCE.joins - {"ATELIER_MODEL"})
EVALUATION = ServiceSpec(
    role="evaluation",
    module="services.inference.evaluation",
    grpc=("atelier.evaluation.v1.EvaluationService",),
    port=9105,
    joins=OBJECTS | TOKENS,
    routed=True,
)
TRAINER = ServiceSpec(
    role="trainer",
    module="services.training.trainer",
    scopes=(WORKER,),
    calls=("tasks", "training"),
    joins=NATS | OBJECTS | TOKENS | {"ATELIER_MODEL", "ATELIER_WORKER_TOKEN", "ATELIER_CAPTION_KEY"},
)
MONITORING = ServiceSpec(
    role="monitoring",
    module="services.monitoring",
    grpc=("atelier.monitoring.v1.SystemService",),
    port=9104,
    schema="monitoring",
    scopes=(MESH,),
    calls=("tasks", "workflows", "training", "evaluation"),
    # Capture is asked where a mesh has it.
    joins=NATS | TOKENS | {"ATELIER_PROMETHEUS_URL", "ATELIER_CAPTURE_ADDRESS"},
    routed=True,
)
# Has Kubernetes remove those workers first that the scheduler has cordoned; a mesh elsewhere has none.
MARKER = ServiceSpec(
    role="marker",
    module="services.monitoring.marker",
    scopes=(MESH,),
    calls=("tasks",),
    joins=TOKENS,
)
# Watches folders in which photos land; a mesh without such folders has none.
CAPTURE = ServiceSpec(
    role="capture",
    module="services.monitoring.capture",
    grpc=(
        "atelier.monitoring.v1.CameraService",
        "atelier.monitoring.v1.PhotoService",
        "atelier.monitoring.v1.EventService",
        "atelier.monitoring.v1.AlertService",
    ),
    port=9106,
    schema="capture",
    scopes=(MESH,),
    calls=("tasks", "workflows"),
    joins=NATS | OBJECTS | TOKENS | MEDIA | {"ATELIER_CAMERA_ROOT"},
    routed=True,
)
GATEWAY = ServiceSpec(
    role="gateway",
    module="services.gateway",
    port=9000,
    joins=NATS | OBJECTS | TOKENS | MEDIA | {"ATELIER_UPSTREAMS"},
    fronts=True,
)

SERVICES: tuple[ServiceSpec, ...] = (TASKS, WORKFLOWS, TRAINING, MONITORING, INFERENCE, EVALUATION, TRAINER, GATEWAY)
# Services that a mesh may have beside these: whoever starts one names its address to those that call it.
OPTIONAL: tuple[ServiceSpec, ...] = (CAPTURE,)


def by_role(role: str) -> ServiceSpec:
    """Return the service of a role.

    Raises:
        KeyError: There is none.
    """
    return {one.role: one for one in (*SERVICES, *OPTIONAL, CALLER, MARKER)}[role]


def routed() -> tuple[ServiceSpec, ...]:
    """Return the services of every mesh whose HTTP routes the gateway serves."""
    return tuple(one for one in SERVICES if one.routed)


def routable() -> tuple[ServiceSpec, ...]:
    """Return the services whose HTTP routes the gateway serves where it is given their address."""
    return (*routed(), *(one for one in OPTIONAL if one.routed))


def addressed() -> tuple[ServiceSpec, ...]:
    """Return the services of every mesh that others call by a fixed address."""
    return tuple(one for one in SERVICES if one.port and not one.fronts)


def grpc_services() -> tuple[str, ...]:
    """Return the full names of all gRPC services of the mesh."""
    return tuple(name for one in (*SERVICES, *OPTIONAL) for name in one.grpc)


def is_served(name: str) -> bool:
    """Tell whether a gRPC service has somebody who serves it: one of a package of the mesh may have nobody yet."""
    packages = {package for one in (*SERVICES, *OPTIONAL) for package in one.packages}
    return name in grpc_services() or name.rpartition(".")[0] not in packages


def joining_settings() -> frozenset[str]:
    """Return every setting that is given to the services that use it and to no other."""
    return frozenset().union(*(one.uses for one in (*SERVICES, *OPTIONAL)))


def address_setting(role: str) -> str:
    """Return the setting that holds the address of a service."""
    return f"ATELIER_{role.upper()}_ADDRESS"
