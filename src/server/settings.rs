//! The setters of the builder: what every knob means, its unit and its default.

use super::builder::ServerBuilder;
use super::limits::Limits;
use crate::config::WhenQueueFull;
use crate::net::{Framing, SocketOptions};

/// The settings. Each replaces an earlier call of the same setter; `bind` checks them all.
impl<T, R, S, W, Stage> ServerBuilder<T, R, S, W, Stage> {
    /// How many threads run `on_task`. From 1 to 10,000; default 4. Swoole's `task_worker_num`, where 0 is allowed
    /// and the default.
    pub fn task_worker_num(mut self, threads: usize) -> Self {
        self.config.tasks.task_worker_num = threads;
        self
    }

    /// The stack of a task worker's thread, in bytes, beside what [values](Self::worker_stack_size) take. At least 128
    /// KiB; default 2 MiB, of which only what is touched is resident.
    pub fn task_worker_stack_size(mut self, bytes: usize) -> Self {
        self.config.tasks.task_worker_stack_size = bytes;
        self
    }

    /// How many tasks a task worker runs before it renews its state: the stop hook is given the old one, and the
    /// `task_worker` closure makes a new one; no task is lost, and the thread stays. At least 1; default: no limit.
    /// Swoole's `task_max_request`, which ends the process.
    pub fn task_max_request(mut self, tasks: u64) -> Self {
        self.config.tasks.task_max_request = Some(tasks);
        self
    }

    /// A task worker runs up to so many tasks more than [`task_max_request`](Self::task_max_request), at random, so
    /// that not all renew their state at once. 0 makes it exact; without `task_max_request` it does nothing. Default:
    /// half of `task_max_request`. Swoole's `task_max_request_grace`.
    pub fn task_max_request_grace(mut self, tasks: u64) -> Self {
        self.config.tasks.task_max_request_grace = Some(tasks);
        self
    }

    /// How many tasks may wait for a task worker, those of all connections together, before
    /// [`when_queue_full`](Self::when_queue_full) decides. At least 1; default 10,000.
    ///
    /// A bound on what is received: what `task` submits beyond it is accepted, up to four times as many and one for each of
    /// `max_connections`; it takes callbacks that submit many, or connections that submit and go, to come to that.
    /// `try_task`, tasks that submit tasks, and repetitions are refused at it, and above half of it while others wait
    /// for room. A connection looks how many wait once in up to 16 tasks.
    pub fn queue_capacity(mut self, tasks: usize) -> Self {
        self.config.tasks.queue_capacity = tasks;
        self
    }

    /// What `task` does at `queue_capacity`. Default [`WhenQueueFull::Defer`].
    pub fn when_queue_full(mut self, what: WhenQueueFull) -> Self {
        self.config.connections.when_queue_full = what;
        self
    }

    /// How many tasks of one connection may be in flight before it receives no further frame. At least 1; default 64.
    /// `try_task` refuses at it, and `task` at four times as many, which takes a callback that submits without end.
    /// Tasks that are delayed, waited for, one-way, or submitted by tasks or repetitions take no place; delayed ones
    /// count towards the four times.
    pub fn max_tasks_in_flight(mut self, tasks: usize) -> Self {
        self.config.tasks.max_tasks_in_flight = tasks;
        self
    }

    /// How many results other than outcomes, those of all its tasks together, may wait for a connection to come to
    /// them; beyond it [`finish`](crate::TaskInfo::finish) refuses, and at 0 always. Default 64.
    pub fn max_results(mut self, results: usize) -> Self {
        self.config.tasks.max_results = results;
        self
    }

    /// Whether the finish closures of a connection run in the order in which its tasks were submitted, whatever the
    /// order in which they end, as pipelined protocols need it. What ends early is held back, which
    /// [`max_tasks_in_flight`](Self::max_tasks_in_flight) bounds. Tasks that are delayed, waited for, one-way, or
    /// submitted by tasks or repetitions take no place in that order. A task that does not end holds back all after it,
    /// unless it has a deadline. Default false.
    /// [`TaskPoolBuilder::results_in_order`](crate::TaskPoolBuilder::results_in_order) has an example.
    pub fn results_in_order(mut self, in_order: bool) -> Self {
        self.config.connections.results_in_order = in_order;
        self
    }

    /// Whether the tasks of a connection that closes are [cancelled](crate::Connection::cancel), but for those that are
    /// one-way; those that its tasks and repetitions submitted, when their turn comes to start. Default false: they
    /// run, and their outcomes are orphaned.
    pub fn cancel_on_close(mut self, cancel: bool) -> Self {
        self.config.connections.cancel_on_close = cancel;
        self
    }

    /// Whether histograms are kept of how long tasks wait and run, for
    /// [`task_times`](crate::ServerHandle::task_times). They take some 80 KiB per task worker, and 50 ns per task.
    /// Default false.
    pub fn task_times(mut self, keep: bool) -> Self {
        self.config.tasks.task_times = keep;
        self
    }

    /// How many connections may be open at once; beyond it clients wait in the backlog of the kernel. At
    /// least 1; default: what the process's own limits allow, min((file limit − 64) / 2, memory maps / 8, the stacks
    /// that fit into its address space, half of its control group's memory / 128 KiB, 10,000), which `bind` logs.
    /// Swoole's `max_connection`, which refuses instead.
    ///
    /// Each connection takes one thread, two file descriptors and some four memory maps. Near the limit of maps
    /// (`vm.max_map_count`) a thread that starts can abort the whole process: stay well below it. A connection
    /// that closes keeps its place until its client, if it was active within the last second, has closed too,
    /// which is waited for for a second at most.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.config.connections.max_connections = Some(connections);
        self
    }

    /// How many bytes all connections together may keep, of what clients have not taken and of frames that are not
    /// whole; what was broadcast is kept once, and counts once. Beyond it, those that keep more than 128 KiB close, with
    /// [`CloseReason::Overloaded`](crate::CloseReason::Overloaded), when their worker next has nothing to do, until the
    /// rest fits; so a server that many slow clients attack does not run out of memory. At least 1; default 512 MiB, or
    /// a quarter of the memory that the process's control group allows if that is less.
    pub fn max_buffered(mut self, bytes: usize) -> Self {
        self.config.connections.max_buffered = Some(bytes);
        self
    }

    /// The stack of a connection's worker thread, in bytes; every callback of a connection runs on it. At least 128 KiB;
    /// default 256 KiB, or 1 MiB where debug assertions are on, since code that is not optimized takes more. Only what is
    /// touched is resident.
    ///
    /// It comes on top of what payloads, results, and the states of connections and task workers take, which are known
    /// by their types: some twenty copies of each, or fifty with debug assertions. So values of 64 KiB overflow no stack,
    /// but each copy costs time, and the stack that they touch stays in memory with the thread. Box what is larger than a KiB or two. What
    /// a closure captures is not known: box it too.
    pub fn worker_stack_size(mut self, bytes: usize) -> Self {
        self.config.connections.worker_stack_size = bytes;
        self
    }

    /// How the bytes of a connection are cut into the `data` of `on_receive`, where its listener does not say otherwise.
    /// Default [`Framing::raw`].
    pub fn framing(mut self, framing: Framing) -> Self {
        self.config.listeners.framing = framing;
        self
    }

    /// What a client may do, and how long it may take, where its listener does not say otherwise.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config.listeners.limits = limits;
        self
    }

    /// What the kernel is told about the sockets, where their listener does not say otherwise.
    pub fn socket_options(mut self, options: SocketOptions) -> Self {
        self.config.listeners.socket_options = options;
        self
    }
}
