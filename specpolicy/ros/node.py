"""The lifecycle node: configured, it has loaded its policy; active, it runs the control loop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from specpolicy.control.action_space import ActionLimits
from specpolicy.control.clocks import Clock, RealTimeClock, SimulatedLatencyClock
from specpolicy.control.executors import Executor
from specpolicy.control.guards import Guards
from specpolicy.control.inference import InferenceRequest, InferenceResult, LoopPolicy
from specpolicy.control.latency import Constant
from specpolicy.control.loop import ControlSetup, run_episode
from specpolicy.control.motion_limits import MotionLimits
from specpolicy.control.trace import write_trace
from specpolicy.control.watchdog import Watchdog
from specpolicy.policies.observations import ObservationSpec
from specpolicy.ros.diagnostics import LatestTrace, NodeState
from specpolicy.ros.environment import SensorReader, TickTime, TopicEnv, TopicError
from specpolicy.ros.interface import ActionTopic, RosInterface
from specpolicy.utils.checks import check_flag, check_integer, check_number
from specpolicy.utils.errors import is_ours, one_line
from specpolicy.utils.extras import require

_log = logging.getLogger(__name__)
_PACKAGES = {
    "Float64MultiArray": "std_msgs", "JointState": "sensor_msgs", "Image": "sensor_msgs",
    "CompressedImage": "sensor_msgs", "PoseStamped": "geometry_msgs", "JointTrajectory": "trajectory_msgs",
    "JointTrajectoryPoint": "trajectory_msgs", "DiagnosticArray": "diagnostic_msgs",
    "DiagnosticStatus": "diagnostic_msgs", "KeyValue": "diagnostic_msgs",
}  # fmt: skip
_KEEP_S = 600.0  # of the trace, in memory, where it is not to be written
_JOIN_S = 5.0


@dataclass(frozen=True)
class NodeSettings:
    """How the node runs.

    Attributes:
        name: of the node.
        rate_hz: actions a second.
        seed, repeat: of the policy's random stream; parameters of the node, read when it is activated.
        autostart: configure and activate at once, and end with an error if the loop does; else wait for an operator.
        use_sim_time: take the time from ``/clock``; a parameter, too.
        reliable: ask for every message of the sensors, not only for the latest; needs sensors that offer that.
        lockstep: the robot is a simulator that steps when it is told to: ticks are counted, and inference takes
            ``latency_ms``, however long it takes here.
        latency_ms: of an inference, in lockstep.
        ros_args: further arguments of ROS, such as ``["-r", "/joint_states:=/left/joint_states"]``.
        out: folder for a trace of each activation; None: none is written, and ten minutes are kept for diagnostics.

    Raises:
        ValueError: out of range.
    """

    name: str = "specpolicy"
    rate_hz: float = 20.0
    seed: int = 0
    repeat: int = 0
    autostart: bool = True
    use_sim_time: bool = False
    reliable: bool = False
    lockstep: bool = False
    latency_ms: float = 0.0
    ros_args: Sequence[str] = ()
    out: str | None = None

    def __post_init__(self) -> None:
        check_number("rate_hz", self.rate_hz, above=0, most=10_000)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_integer("repeat", self.repeat, 0, 2**63 - 1)
        for name in ("autostart", "use_sim_time", "reliable", "lockstep"):
            check_flag(name, getattr(self, name))
        check_number("latency_ms", self.latency_ms, least=0)
        if self.latency_ms and not self.lockstep:
            raise ValueError(f"latency_ms={self.latency_ms:g} can be chosen in lockstep only: lockstep=true")


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy that is ready to run.

    Attributes:
        policy: answers the loop.
        observations: what it needs.
        action_dim: entries of its actions.
        description: for diagnostics, e.g. the checkpoint, the sampler, and whether it is exact.
    """

    policy: LoopPolicy
    observations: ObservationSpec
    action_dim: int
    description: dict[str, str] = field(default_factory=dict)


class ExclusivePolicy:
    """A policy that computes one thing at a time: after a stop the last inference may still be under way.

    Args:
        policy: answers.
    """

    def __init__(self, policy: LoopPolicy) -> None:
        self._policy, self._lock = policy, threading.Lock()
        self.n_obs_steps, self.predrafts = policy.n_obs_steps, policy.predrafts

    def reset(self, seed: int, repeat: int) -> None:
        """See :class:`LoopPolicy`."""
        with self._lock:
            self._policy.reset(seed, repeat)

    def infer(self, request: InferenceRequest) -> InferenceResult:
        """See :class:`LoopPolicy`."""
        with self._lock:
            return self._policy.infer(request)


def make_message(kind: str) -> Any:
    """Make an empty message of ROS by the name of its type. Raises ``ImportError`` that names the extra."""
    return getattr(require(f"{_PACKAGES[kind]}.msg", "ros"), kind)()


class PolicyNode:
    """A policy behind a lifecycle node.

    Args:
        settings: how it runs.
        interface: the topics.
        load: loads the policy, when the node is configured.
        executor: what to do about the time that the policy takes.
        guards: what to do when something goes wrong.
        limits: of motion, and the controller's rate.
        make_watchdog: starts a watchdog, when the node is configured; None: there is none.

    Attributes:
        failure: why the node could not be configured, or why its loop ended; None if neither happened.

    Raises:
        ImportError: ROS is not installed; the message names the extra.
        ValueError: the executor lets the world wait, and the robot does not; or limits that contradict each other.
    """

    def __init__(
        self,
        settings: NodeSettings,
        interface: RosInterface,
        load: Callable[[], LoadedPolicy],
        executor: Executor,
        guards: Guards,
        limits: MotionLimits | None = None,
        make_watchdog: Callable[[], Watchdog] | None = None,
    ) -> None:
        if make_watchdog is not None and (settings.lockstep or settings.use_sim_time):
            raise ValueError("a watchdog counts the machine's time: not with lockstep=true, not with use_sim_time=true")
        if executor.config.world_waits and not settings.lockstep:
            raise ValueError("no robot waits for its policy: take another executor, or lockstep=true in simulation")
        self._settings, self._interface, self._load = settings, interface, load
        self._executor, self._guards, self._limits = executor, guards, limits
        self._commands_per_action = 1 if limits is None else limits.commands_per_action(settings.rate_hz)
        if limits is not None:
            limits.box(ActionLimits.from_space(interface.action_space, interface.spec), interface.spec)
        self.failure: str | None = None
        self._make_watchdog = make_watchdog
        self._watchdog: Watchdog | None = None
        self._loaded: LoadedPolicy | None = None
        self._policy: ExclusivePolicy | None = None
        self._thread: threading.Thread | None = None
        self._env: TopicEnv | None = None
        self._tick_time: TickTime | None = None
        self._subscriptions: list[Any] = []
        self._publishers: dict[str, Any] = {}
        self._latest = LatestTrace(None if settings.out else max(round(_KEEP_S * settings.rate_hz), 1))
        self._activations = 0
        self._rclpy: Any = require("rclpy", "ros")
        self._lifecycle: Any = require("rclpy.lifecycle", "ros")
        self._qos: Any = require("rclpy.qos", "ros")
        clocks: Any = require("rclpy.clock", "ros")
        parameter: Any = require("rclpy.parameter", "ros").Parameter
        self._context: Any = require("rclpy.context", "ros").Context()
        arguments = ["--ros-args", *settings.ros_args] if settings.ros_args else []
        self._rclpy.init(args=arguments, context=self._context, signal_handler_options=no_signals())
        self.node: Any = self._lifecycle.LifecycleNode(
            settings.name,
            context=self._context,
            parameter_overrides=[parameter("use_sim_time", value=settings.use_sim_time)],
        )
        self.node.declare_parameter("seed", settings.seed)
        self.node.declare_parameter("repeat", settings.repeat)
        success, failed = (getattr(self._lifecycle.TransitionCallbackReturn, name) for name in ("SUCCESS", "FAILURE"))

        def answering(act: Callable[[], None]) -> Callable[[Any, Any], Any]:
            def callback(_: Any, __: Any) -> Any:
                try:
                    act()
                except Exception as error:
                    self._fail(error)
                    return failed
                return success

            return callback

        actions = {
            "on_configure": self._configure, "on_activate": self._activate, "on_deactivate": self._deactivate,
            "on_cleanup": self._clean_up, "on_shutdown": self._shut_down,
        }  # fmt: skip
        entity = type(
            "Managed", (self._lifecycle.ManagedEntity,), {name: answering(act) for name, act in actions.items()}
        )
        self.node.add_managed_entity(entity())
        steady = clocks.Clock(clock_type=clocks.ClockType.STEADY_TIME)
        self._diagnostics = self.node.create_publisher(type(make_message("DiagnosticArray")), "/diagnostics", 10)
        self.node.create_timer(1.0, self._publish_diagnostics, clock=steady)
        self.node.create_timer(0.05, self._look_after, clock=steady)
        executors: Any = require("rclpy.executors", "ros")
        self._spinner = executors.SingleThreadedExecutor(context=self._context)
        self._spinner.add_node(self.node)

    @property
    def active(self) -> bool:
        """Whether the control loop runs."""
        return self._thread is not None

    def run(self, over: Callable[[], bool] = lambda: False) -> None:
        """Serve until SIGTERM or Ctrl-C; then send the safe action and leave. To be called in the main thread.

        Args:
            over: asked ten times a second; ends it, too.

        Raises:
            TopicError: with ``autostart``, the node could not be configured, or its loop has ended.
        """
        ended = threading.Event()

        def end(_: int, __: FrameType | None) -> None:
            ended.set()

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self._settings.autostart:
                for transition in (self.node.trigger_configure, self.node.trigger_activate):
                    if self.failure is None:
                        transition()
            while not ended.is_set() and not over() and not (self._settings.autostart and self.failure is not None):
                self._spinner.spin_once(timeout_sec=0.1)
        finally:
            self.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._settings.autostart and self.failure is not None:
            raise TopicError(self.failure)

    def close(self) -> None:
        """Stop the loop, which sends the safe action, and leave the network."""
        with suppress(Exception):
            self._shut_down()
        with suppress(Exception):
            self._publish_diagnostics()
        with suppress(Exception):
            self._spinner.shutdown(0)
            self.node.destroy_node()
        with suppress(Exception):
            self._context.try_shutdown()

    def _configure(self) -> None:
        self.failure = None
        self._loaded = loaded = self._load()
        self._interface.check_policy(loaded.observations, loaded.action_dim)
        if self._make_watchdog is not None:
            self._watchdog = self._make_watchdog()
        self._policy = ExclusivePolicy(loaded.policy)
        now_s, self._tick_time = self._times()
        self._reader = reader = SensorReader(
            self._interface, loaded.observations.shapes, now_s, self._ros_time, not self._settings.lockstep
        )
        policies = self._qos
        sensors = policies.QoSProfile(
            depth=5,
            reliability=policies.ReliabilityPolicy.RELIABLE
            if self._settings.reliable
            else policies.ReliabilityPolicy.BEST_EFFORT,
        )
        for topic, state in reader.states.items():

            def receive(message: Any, topic: str = topic) -> None:
                reader.receive(topic, message)

            kind = type(make_message(state.type))
            self._subscriptions.append(self.node.create_subscription(kind, topic, receive, sensors))
        for action in self._interface.actions:
            kind = type(make_message(action.type))
            self._publishers[action.topic] = self.node.create_publisher(kind, action.topic, 10)
        clocks: Any = require("rclpy.clock", "ros")
        duration: Any = require("rclpy.duration", "ros").Duration
        threshold = clocks.JumpThreshold(min_forward=None, min_backward=duration(nanoseconds=-1), on_clock_change=False)
        self._jumps = self.node.get_clock().create_jump_callback(threshold, post_callback=lambda _: reader.forget())

    def _times(self) -> tuple[Callable[[], float], TickTime]:
        """The clock of arrivals, and that of the loop: the machine's, or the simulator's."""
        read = self._ros_time if self._sim_time else time.monotonic
        return read, TickTime(read)

    @property
    def _sim_time(self) -> bool:
        return bool(self.node.get_parameter("use_sim_time").value)

    def _ros_time(self) -> float:
        return 1e-9 * float(self.node.get_clock().now().nanoseconds)

    def _activate(self) -> None:
        assert self._loaded is not None and self._policy is not None and self._tick_time is not None
        self.failure = None
        seed, repeat = (check_integer(name, self.node.get_parameter(name).value, 0) for name in ("seed", "repeat"))
        rate_hz, lockstep = self._settings.rate_hz, self._settings.lockstep
        sleep = self._tick_time.sleep if self._sim_time else time.sleep
        clock: Clock = RealTimeClock(rate_hz, self._tick_time, sleep)
        if lockstep:
            clock = SimulatedLatencyClock(rate_hz, Constant(1e-3 * self._settings.latency_ms))
        self._reader.forget()
        self._env = TopicEnv(
            self._interface, self._reader, self._send, make_message, clock, self._ros_time,
            self._loaded.observations.horizon, lockstep, self._commands_per_action, self._graph_problem,
            0.001 if self._sim_time else None,
        )  # fmt: skip
        setup = ControlSetup(
            self._env, self._executor, clock, self._policy.n_obs_steps, self._interface.spec, self._guards,
            [self._latest], limits=self._limits, watchdog=self._watchdog,
        )  # fmt: skip
        self._activations += 1
        self._thread = threading.Thread(
            target=self._play, args=(setup, self._policy, seed, repeat), name="control loop", daemon=True
        )
        self._thread.start()

    def _play(self, setup: ControlSetup, policy: LoopPolicy, seed: int, repeat: int) -> None:
        """The thread of the control loop."""
        try:
            trace = run_episode(setup, policy, seed, repeat)
            self.failure = f"stopped ({trace.stopped}): {trace.reason or 'no reason given'}"
        except SystemExit:
            pass  # it was asked to stop, and has sent the safe action
        except BaseException as error:
            self._fail(error)

    def _send(self, topic: ActionTopic, message: Any) -> None:
        self._publishers[topic.topic].publish(message)

    def _graph_problem(self) -> str | None:
        """Say which topic nobody reads or writes; a topic of another type is refused."""
        for topic, state in self._reader.states.items():
            for info in self.node.get_publishers_info_by_topic(self.node.resolve_topic_name(topic)):
                if info.topic_type.rpartition("/")[2] != state.type:
                    raise TopicError(f"{topic} is a {info.topic_type}; the interface says {state.type}")
        for action in self._interface.actions:
            for info in self.node.get_subscriptions_info_by_topic(self.node.resolve_topic_name(action.topic)):
                if info.topic_type.rpartition("/")[2] != action.type:
                    raise TopicError(f"{action.topic} is read as a {info.topic_type}; the interface says {action.type}")
            if self._publishers[action.topic].get_subscription_count() == 0:
                return f"{action.topic}: nobody subscribes to the actions"
        return None

    def _deactivate(self) -> None:
        if self._env is not None:
            self._env.stop()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                raise TopicError(f"the control loop did not end within {_JOIN_S:g} s")
            self._thread = None
        self._env = None
        trace = self._latest.trace
        if self._settings.out is not None and trace is not None and trace.ticks:
            write_trace(trace, Path(self._settings.out) / f"activation-{self._activations:03d}.parquet")

    def _clean_up(self) -> None:
        for each in self._subscriptions:
            self.node.destroy_subscription(each)
        for each in self._publishers.values():
            self.node.destroy_publisher(each)
        self._subscriptions, self._publishers = [], {}
        self._loaded = self._policy = None
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.close()

    def _shut_down(self) -> None:
        self._deactivate()
        self._clean_up()

    def _look_after(self) -> None:
        """When the loop has ended by itself, the node is inactive."""
        if self._thread is not None and not self._thread.is_alive():
            _log.error("%s", self.failure)
            self.node.trigger_deactivate()

    def _fail(self, error: BaseException) -> None:
        self.failure = one_line(error) if is_ours(error) else f"{type(error).__name__}: {one_line(error)}"

    def _publish_diagnostics(self) -> None:
        reader = self._reader if self._subscriptions else None
        jumps = 0 if self._tick_time is None else self._tick_time.jumps
        description = {} if self._loaded is None else self._loaded.description
        array = make_message("DiagnosticArray")
        array.header.stamp = self.node.get_clock().now().to_msg()
        name = self._settings.name
        state = NodeState(name, self.active, self.failure, description, self._latest, jumps, reader)
        for found in state.findings():
            status = make_message("DiagnosticStatus")
            status.level, status.name, status.message = bytes([found.level]), found.name, found.message
            status.hardware_id = name
            for key, value in found.values.items():
                pair = make_message("KeyValue")
                pair.key, pair.value = key, value
                status.values.append(pair)
            array.status.append(status)
        self._diagnostics.publish(array)


def no_signals() -> Any:
    """Return ROS's option to leave signals to this process."""
    return require("rclpy.signals", "ros").SignalHandlerOptions.NO
