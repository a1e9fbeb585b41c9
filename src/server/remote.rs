//! Reaching a connection's callbacks from elsewhere.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;

use super::connection::Connection;
use super::connection_info::ConnectionId;
use super::handle::ServerHandle;
use super::mailbox::{Item, NotPut, Visit};
use crate::error::VisitError;

/// A [`ServerHandle`] that knows the types of the server's connections, for any thread; from
/// [`Connection::remote`](crate::Connection::remote).
pub struct Remote<T, R, S = ()> {
    server: ServerHandle,
    types: PhantomData<fn(T, R, S)>,
}

impl<T, R, S> Remote<T, R, S> {
    pub(super) fn new(server: &ServerHandle) -> Remote<T, R, S> {
        Remote { server: server.clone(), types: PhantomData }
    }

    /// The server.
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }
}

impl<T: Send + 'static, R: Send + 'static, S: 'static> Remote<T, R, S> {
    /// Runs a closure on the worker of a connection, which may be any of this server's. Returns at once. Swoole's
    /// `sendMessage` and `PipeMessage`.
    ///
    /// It comes in turn with what this thread has sent to that connection before. An error that it returns is logged,
    /// and a panic closes that connection. It is dropped unrun if the connection closes first. The error hands it back:
    /// where the connection is closed, and where 1,024 closures and the like wait for it already.
    ///
    /// ```
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder::<(), ()>()
    ///     .session(|_peer| String::new()) // what others have told this one
    ///     .on_receive(|conn, data| {
    ///         let (remote, told) = (conn.remote(), String::from_utf8_lossy(data).into_owned());
    ///         for other in conn.server().connections().user("listener") {
    ///             let told = told.clone();
    ///             let _closed_meanwhile = remote.with_connection(other.id, move |conn| {
    ///                 conn.session_mut().push_str(&told);
    ///                 Ok(())
    ///             });
    ///         }
    ///         Ok(())
    ///     })
    ///     .on_task(|_cx, ()| Ok(()))
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_connection<F>(&self, connection: ConnectionId, run: F) -> Result<(), VisitError<F>>
    where
        F: FnOnce(&mut Connection<T, R, S>) -> anyhow::Result<()> + Send + 'static,
    {
        let Some(entry) = self.server.core.registry.get(connection) else { return Err(VisitError::closed(run)) };
        match entry.mailbox.place() {
            Ok(place) => {
                place.put(Item::Visit(visit(run)));
                Ok(())
            }
            Err(NotPut::Closed) => Err(VisitError::closed(run)),
            Err(NotPut::Full) => Err(VisitError::full(run)),
        }
    }
}

/// The mailbox does not know the type. It is always this one: a `Remote` is made by a connection of the same server.
fn visit<T: 'static, R: 'static, S: 'static>(
    run: impl FnOnce(&mut Connection<T, R, S>) -> anyhow::Result<()> + Send + 'static,
) -> Visit {
    Box::new(|connection: &mut dyn Any| match connection.downcast_mut() {
        Some(connection) => run(connection),
        None => Ok(()),
    })
}

impl<T, R, S> Clone for Remote<T, R, S> {
    fn clone(&self) -> Self {
        Remote::new(&self.server)
    }
}

impl<T, R, S> fmt::Debug for Remote<T, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&self.server).finish()
    }
}
