//! What every worker of a server needs: the callbacks, the back room, the settings.

use std::net::SocketAddr;
use std::sync::Arc;

use super::close_reason::CloseReason;
use super::connection::Connection;
use super::handle::Core;
use crate::config::Config;
use crate::task::{Pool, TaskCallbacks};

pub(super) struct Service<T: Send + 'static, R: Send + 'static, S> {
    pub(super) core: Arc<Core>,
    pub(super) config: Config,
    pub(super) pool: Arc<Pool<T, R>>,
    pub(super) session: MakeSession<S>,
    pub(super) on_receive: OnReceive<T, R, S>,
    pub(super) callbacks: Callbacks<T, R, S>,
}

pub(super) type MakeSession<S> = Box<dyn Fn(SocketAddr) -> S + Send + Sync>;
type OnConnect<T, R, S> = Box<dyn Fn(&mut Connection<T, R, S>) -> anyhow::Result<()> + Send + Sync>;
pub(super) type OnReceive<T, R, S> = Box<dyn Fn(&mut Connection<T, R, S>, &[u8]) -> anyhow::Result<()> + Send + Sync>;
type OnClose<T, R, S> = Box<dyn Fn(&mut Connection<T, R, S>, &CloseReason) -> anyhow::Result<()> + Send + Sync>;

/// The callbacks that run on a connection's worker, and that it can do without.
pub(super) struct Callbacks<T, R, S> {
    pub(super) on_connect: Option<OnConnect<T, R, S>>,
    pub(super) tasks: TaskCallbacks<R, Connection<T, R, S>>,
    pub(super) on_close: Option<OnClose<T, R, S>>,
}

impl<T, R, S> Default for Callbacks<T, R, S> {
    fn default() -> Self {
        Callbacks { on_connect: None, tasks: TaskCallbacks::default(), on_close: None }
    }
}
