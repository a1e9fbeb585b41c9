//! What every worker of a server needs: the callbacks, the back room, the settings.

use std::sync::Arc;

use super::close_reason::{CloseReason, Timeout};
use super::connection::Connection;
use super::core::Core;
use super::packets::OnPacket;
use crate::config::{Config, WhenQueueFull};
use crate::net::Address;
use crate::task::{Pool, PortConfig, TaskCallbacks, WhenFull};

pub(super) struct Service<T: Send + 'static, R: Send + 'static, S> {
    pub(super) core: Arc<Core>,
    pub(super) config: Config,
    /// Of the threads on which its callbacks run.
    pub(super) stack_size: usize,
    pub(super) pool: Arc<Pool<T, R>>,
    pub(super) session: MakeSession<S>,
    pub(super) on_receive: OnReceive<T, R, S>,
    pub(super) on_packet: Option<OnPacket<T, R>>,
    pub(super) callbacks: Callbacks<T, R, S>,
}

impl<T: Send + 'static, R: Send + 'static, S> Service<T, R, S> {
    pub(super) fn port_config(&self) -> PortConfig {
        let Config { tasks, connections, .. } = &self.config;
        PortConfig {
            max_in_flight: tasks.max_tasks_in_flight,
            when_full: match connections.when_queue_full {
                WhenQueueFull::Defer => WhenFull::Defer,
                WhenQueueFull::Refuse => WhenFull::Refuse,
            },
            in_order: connections.results_in_order,
            cancel_at_end: connections.cancel_on_close,
            max_results: tasks.max_results,
            hears_progress: self.callbacks.tasks.on_progress.is_some(),
            until_drained: false,
        }
    }
}

pub(super) type MakeSession<S> = Box<dyn Fn(&Address) -> S + Send + Sync>;
/// On the worker, told nothing but which connection.
pub(super) type OnConnection<T, R, S> = Box<dyn Fn(&mut Connection<T, R, S>) -> anyhow::Result<()> + Send + Sync>;
pub(super) type OnReceive<T, R, S> = Box<dyn Fn(&mut Connection<T, R, S>, &[u8]) -> anyhow::Result<()> + Send + Sync>;
type OnTimeout<T, R, S> = Box<dyn Fn(&mut Connection<T, R, S>, Timeout) -> anyhow::Result<()> + Send + Sync>;
type OnClose<T, R, S> = Box<dyn Fn(&mut Connection<T, R, S>, &CloseReason) -> anyhow::Result<()> + Send + Sync>;

/// The callbacks that run on a connection's worker, and that it can do without.
pub(super) struct Callbacks<T, R, S> {
    pub(super) on_connect: Option<OnConnection<T, R, S>>,
    pub(super) tasks: TaskCallbacks<R, Connection<T, R, S>>,
    pub(super) on_timeout: Option<OnTimeout<T, R, S>>,
    pub(super) on_high_watermark: Option<OnConnection<T, R, S>>,
    pub(super) on_low_watermark: Option<OnConnection<T, R, S>>,
    pub(super) on_close: Option<OnClose<T, R, S>>,
}

impl<T, R, S> Default for Callbacks<T, R, S> {
    fn default() -> Self {
        Callbacks {
            on_connect: None,
            tasks: TaskCallbacks::default(),
            on_timeout: None,
            on_high_watermark: None,
            on_low_watermark: None,
            on_close: None,
        }
    }
}
