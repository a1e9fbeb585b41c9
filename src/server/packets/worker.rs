//! The thread of a packet socket.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::{IdleSocket, PacketSocket};
use crate::logging::{LogLimit, foreign};
use crate::net::Sleeper;
use crate::new_thread::NewThread;
use crate::panic::catch;
use crate::server::handle::ServerHandle;
use crate::server::lifecycle::Phase;
use crate::server::service::Service;
use crate::server::workers::Counted;
use crate::task::{Label, Port, TaskCallbacks, Wake, new_number};

/// The largest datagram there is.
const LARGEST: usize = 64 * 1024;
/// At most so many outcomes are delivered, and packets received, before the other has its turn.
const BATCH: usize = 64;
/// After so many errors in a row nothing is received for this long: they seem to last, and would come without end.
const MAX_ERRORS: usize = 64;
const BACKOFF: Duration = Duration::from_millis(100);

pub(in crate::server) fn start<T, R, S>(service: &Arc<Service<T, R, S>>, idle: IdleSocket) -> io::Result<()>
where
    T: Send + 'static,
    R: Send + 'static,
    S: 'static,
{
    let (counted, stack_size) = (Counted::new(&service.core), service.stack_size);
    let service = Arc::clone(service);
    let name = format!("br-udp-{}", idle.shared.local_addr.port());
    let run = move || {
        service.core.threads.claim();
        if let Err(message) = catch(|| serve_packets(&service, idle)) {
            log::error!("a packet socket panicked outside its callbacks: {}", foreign(message));
        }
        drop(service);
        drop(counted);
    };
    NewThread::reserve(stack_size)?.start(name, run).map(drop)
}

/// Serves one packet socket until the server shuts down and its outcomes are delivered.
fn serve_packets<T, R, S>(service: &Service<T, R, S>, idle: IdleSocket)
where
    T: Send + 'static,
    R: Send + 'static,
    S: 'static,
{
    let IdleSocket { datagrams, shared, sleeper } = idle;
    let wake: Arc<dyn Wake> = Arc::clone(sleeper.waker()) as _;
    let server = ServerHandle { core: Arc::clone(&service.core) };
    let port = service.pool.port(new_number(), wake, Some(Arc::clone(&shared) as Label), service.port_config());
    let socket = PacketSocket { datagrams, shared, port, server };
    let mut worker = PacketWorker {
        service,
        socket,
        sleeper,
        buffer: vec![0; LARGEST],
        callbacks: TaskCallbacks::default(),
        errors: 0,
        deaf_until: None,
        log: LogLimit::default(),
    };
    while worker.turn() {}
    worker.socket.port.end();
}

struct PacketWorker<'a, T: Send + 'static, R: Send + 'static, S> {
    service: &'a Service<T, R, S>,
    socket: PacketSocket<T, R>,
    sleeper: Sleeper,
    buffer: Vec<u8>,
    callbacks: TaskCallbacks<R, PacketSocket<T, R>>,
    /// Of receiving, in a row.
    errors: usize,
    /// Nothing is received until then.
    deaf_until: Option<Instant>,
    log: LogLimit,
}

impl<T: Send + 'static, R: Send + 'static, S> PacketWorker<'_, T, R, S> {
    /// False if that was the last.
    fn turn(&mut self) -> bool {
        let phase = self.service.core.lifecycle.phase();
        let port = &mut self.socket.port;
        port.open = phase == Phase::Serving;
        port.forget_time();
        port.time_out();
        port.hear_call();
        self.deliver();
        let port = &mut self.socket.port;
        match phase {
            Phase::Serving => {}
            Phase::Draining if port.in_flight() == 0 => return false,
            Phase::Expired if !port.has_message() => return false,
            _ => {}
        }
        if self.deaf_until.is_some_and(|until| Instant::now() >= until) {
            self.deaf_until = None;
        }
        if !(self.may_receive(phase) && self.receive()) {
            self.sleep(phase);
        }
        true
    }

    fn may_receive(&mut self, phase: Phase) -> bool {
        let should_pause = self.socket.port.should_pause();
        !should_pause && phase == Phase::Serving && self.deaf_until.is_none()
    }

    fn deliver(&mut self) {
        for _ in 0..BATCH {
            if !self.socket.port.fetch() {
                break;
            }
            let callbacks = &self.callbacks;
            let socket = &mut self.socket;
            let returned = catch(|| Port::deliver(socket, |socket| &mut socket.port, callbacks).unwrap_or(Ok(())));
            if !matches!(returned, Ok(Ok(()))) {
                self.socket.port.ledger().finish_errors.add(1);
            }
            self.log_failure("a finish closure", returned);
        }
    }

    /// False if there are no more packets for now.
    fn receive(&mut self) -> bool {
        for _ in 0..BATCH {
            let (len, from) = match self.socket.datagrams.receive(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.errors = 0;
                    return false;
                }
                // What an earlier datagram met on its way, mostly: nobody there.
                Err(error) => {
                    self.note_error(&error);
                    match self.deaf_until {
                        Some(_) => return false,
                        None => continue,
                    }
                }
            };
            self.errors = 0;
            self.socket.shared.received.fetch_add(1, Ordering::Relaxed);
            let Some(on_packet) = &self.service.on_packet else { continue };
            let (socket, data) = (&mut self.socket, &self.buffer[..len]);
            let returned = catch(|| on_packet(socket, from, data));
            self.log_failure("on_packet", returned);
            if self.socket.port.should_pause() {
                break;
            }
        }
        true
    }

    fn note_error(&mut self, error: &io::Error) {
        log::debug!("packet socket: {error}");
        self.errors += 1;
        if self.errors < MAX_ERRORS {
            return;
        }
        self.errors = 0;
        self.deaf_until = Some(Instant::now() + BACKOFF);
        if let Some(held_back) = self.log.permit() {
            let address = self.socket.local_addr();
            log::warn!(
                "packet socket {address}: cannot receive for now: {error} ({held_back} more since the last line)"
            );
        }
    }

    fn sleep(&mut self, phase: Phase) {
        // Marked first and looked second; whoever has something for us, room in the queue too, pushes first and looks at
        // the mark second.
        self.sleeper.mark_asleep();
        let receive = self.may_receive(phase);
        let port = &self.socket.port;
        if port.has_message() || self.service.core.lifecycle.phase() != phase {
            return self.sleeper.mark_awake();
        }
        let until = port.next_deadline().into_iter().chain(self.deaf_until).min();
        let timeout = until.map(|at| at.saturating_duration_since(Instant::now()));
        let source = receive.then(|| self.socket.datagrams.as_fd());
        if let Err(error) = self.sleeper.sleep(source, true, false, timeout) {
            log::error!("packet socket: cannot wait: {error}");
            // Without `poll` there is nothing to wait on, and trying again at once would spin.
            thread::sleep(Duration::from_secs(1));
        }
    }

    fn log_failure(&self, what: &str, returned: Result<anyhow::Result<()>, String>) {
        let failure = match returned {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("failed: {}", foreign(format_args!("{error:#}"))),
            Err(message) => format!("panicked: {}", foreign(message)),
        };
        if let Some(held_back) = self.log.permit() {
            let address = self.socket.local_addr();
            log::warn!("packet socket {address}: {what} {failure} ({held_back} more since the last line)");
        }
    }
}
