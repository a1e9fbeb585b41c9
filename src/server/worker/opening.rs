//! Before the first callback: what a proxy says of its client, and the TLS handshake, on the worker's own thread.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::is_transient;
use crate::net::{Proxied, ProxyHeader, Sleeper, Stream};
use crate::server::admission::{Admitted, Refusal};
use crate::server::close_reason::{CloseReason, Timeout};
use crate::server::connection_info::ConnectionId;
use crate::server::core::Core;
use crate::server::lifecycle::Phase;
use crate::server::listener::ListenerSettings;

/// Blocks until the client's own first byte is next, for `handshake_timeout` at most.
pub(super) fn open(
    id: ConnectionId,
    stream: &mut Stream,
    admitted: &mut Option<Admitted>,
    sleeper: &Sleeper,
    core: &Arc<Core>,
    settings: &ListenerSettings,
) -> Result<(), CloseReason> {
    let _opening = core.registry.opening(id, sleeper.waker());
    let deadline = Instant::now().checked_add(settings.limits.handshake_timeout);
    let mut wait = Wait { sleeper, core, deadline };
    if settings.is_proxy(stream.peer_addr()) {
        if let Proxied::From { peer, local } = read_proxy_header(stream, &mut wait)? {
            stream.set_addresses(peer, local);
        }
        *admitted = settings.admission.admit(stream.peer_addr(), Instant::now()).map_err(|refusal| match refusal {
            Refusal::TooMany => CloseReason::TooManyOfAddress,
            Refusal::TooFast => CloseReason::TooFastOfAddress,
        })?;
    }
    #[cfg(feature = "tls")]
    if let Some(tls) = &settings.tls {
        stream.begin_tls(tls.session().map_err(|error| CloseReason::TlsFailed(error.to_string()))?);
        shake_hands(stream, &mut wait)?;
    }
    Ok(())
}

fn read_proxy_header(stream: &mut Stream, wait: &mut Wait<'_>) -> Result<Proxied, CloseReason> {
    let mut header = ProxyHeader::default();
    let mut buffer = [0; 256];
    loop {
        let bad = |error: crate::net::BadHeader| CloseReason::BadProxyHeader(error.0);
        match stream.peek(&mut buffer) {
            Ok(0) => return Err(CloseReason::BadProxyHeader("the connection was closed before it")),
            Ok(seen) => {
                // What comes after the header is the client's own, or TLS.
                let wanted = header.wants(&buffer[..seen]).map_err(bad)?;
                let n = match io::Read::read(stream, &mut buffer[..wanted]) {
                    Err(error) if is_transient(&error) => continue,
                    read => read.map_err(CloseReason::Io)?,
                };
                if let Some(said) = header.take(&buffer[..n]).map_err(bad)? {
                    return Ok(said);
                }
            }
            Err(error) if is_transient(&error) => wait.until_ready(stream, true, false)?,
            Err(error) => return Err(CloseReason::Io(error)),
        }
    }
}

#[cfg(feature = "tls")]
fn shake_hands(stream: &mut Stream, wait: &mut Wait<'_>) -> Result<(), CloseReason> {
    use crate::net::Handshake;

    loop {
        match stream.shake_hands() {
            Ok(Handshake::Done) => return Ok(()),
            Ok(Handshake::Reads) => wait.until_ready(stream, true, false)?,
            Ok(Handshake::Writes) => wait.until_ready(stream, false, true)?,
            Err(error) => return Err(super::socket_error(error)),
        }
    }
}

struct Wait<'a> {
    sleeper: &'a Sleeper,
    core: &'a Arc<Core>,
    deadline: Option<Instant>,
}

impl Wait<'_> {
    fn until_ready(&mut self, stream: &Stream, read: bool, write: bool) -> Result<(), CloseReason> {
        self.sleeper.mark_asleep();
        // A client that has not come as far as this is owed nothing.
        if self.core.lifecycle.phase() != Phase::Serving {
            return Err(CloseReason::Shutdown);
        }
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(CloseReason::TimedOut(Timeout::Handshake));
        }
        let source = Some(stream.as_fd());
        self.sleeper.sleep(source, read, write, left).map_err(CloseReason::Io)?;
        Ok(())
    }
}
