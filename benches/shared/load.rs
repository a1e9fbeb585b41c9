//! The load: one thread, all connections in one epoll, each with a fixed number of requests in flight. Every answer is
//! checked: it must answer a request that is in flight on that connection, and say exactly what it should.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll;

use super::lines::Lines;
use super::process::ServerProcess;
use super::report::{Answers, Measured};

#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.connections, self.in_flight)
    }
}

/// A server that answers nothing for so long has failed.
const STALLED: Duration = Duration::from_secs(5);

/// A way to a server, which does not block; what it speaks over its socket is its own affair.
pub(crate) trait Wire: Read + Write {
    fn socket(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

/// After a warm-up. `wire` makes of a connection what it is to be.
pub(crate) fn measure<W: Wire>(
    server: &ServerProcess,
    shape: Shape,
    time: Duration,
    wire: impl Fn(TcpStream) -> anyhow::Result<W>,
) -> anyhow::Result<Measured> {
    let clients = || {
        let client = |_| {
            let socket = TcpStream::connect(server.addr())?;
            socket.set_nodelay(true)?;
            Client::new(wire(socket)?, shape.in_flight)
        };
        (0..shape.connections).map(client).collect::<anyhow::Result<Vec<_>>>()
    };
    run(clients()?, time / 5)?;
    // The connections of the warm-up are closed by then; there is no event for it.
    std::thread::sleep(Duration::from_millis(50));
    let clients = clients()?;
    let cpu_before = server.cpu_time()?;
    let answers = run(clients, time)?;
    Ok(Measured::new(&answers, server.cpu_time()? - cpu_before))
}

fn run<W: Wire>(mut clients: Vec<Client<W>>, time: Duration) -> anyhow::Result<Answers> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, client) in clients.iter().enumerate() {
        let event = epoll::EventData::new_u64(index as u64);
        epoll::add(&epoll, client.wire.socket(), event, epoll::EventFlags::IN)?;
    }
    let mut answers = Answers { count: 0, time: Duration::ZERO, latency: Histogram::new(3)? };
    let start = Instant::now();
    for client in &mut clients {
        for slot in 0..client.slots.len() {
            client.request(slot, start);
        }
        client.flush()?;
    }
    let mut events = Vec::with_capacity(clients.len());
    let mut go_on = true;
    while go_on || clients.iter().any(|client| client.in_flight > 0) {
        let timeout = Timespec::try_from(STALLED)?;
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        ensure!(!events.is_empty(), "the server has answered nothing for {STALLED:?}");
        for event in events.drain(..) {
            let client = &mut clients[event.data.u64() as usize];
            client.take_answers(go_on.then_some(&mut answers))?;
            client.flush()?;
        }
        if go_on && start.elapsed() >= time {
            // Nothing new is asked from here on; what is in flight must still be answered, but no longer counts.
            answers.time = start.elapsed();
            go_on = false;
        }
    }
    Ok(answers)
}

/// Connections that have done one request each and then do nothing.
pub(crate) fn idle_connections(addr: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        let mut socket = TcpStream::connect(addr)?;
        socket.set_read_timeout(Some(STALLED))?;
        socket.write_all(b"hello\n")?;
        let mut answer = [0; 12];
        socket.read_exact(&mut answer)?;
        ensure!(&answer == b"hello -> OK\n", "a wrong answer");
        idle.push(socket);
    }
    // What the server does after its last answer is done by then; there is no event for it.
    std::thread::sleep(Duration::from_secs(2));
    Ok(idle)
}

struct Client<W> {
    wire: W,
    input: Lines,
    output: Vec<u8>,
    slots: Vec<Slot>,
    in_flight: usize,
    requests: u64,
}

/// A request in flight. Its line is `slot.number`; a slot without one has the number 0.
#[derive(Clone, Copy)]
struct Slot {
    number: u64,
    sent: Instant,
}

impl<W: Wire> Client<W> {
    fn new(wire: W, in_flight: usize) -> anyhow::Result<Client<W>> {
        wire.socket().set_nonblocking(true)?;
        let slots = vec![Slot { number: 0, sent: Instant::now() }; in_flight];
        Ok(Client { wire, input: Lines::default(), output: Vec::new(), slots, in_flight: 0, requests: 0 })
    }

    fn request(&mut self, slot: usize, now: Instant) {
        self.requests += 1;
        self.in_flight += 1;
        self.slots[slot] = Slot { number: self.requests, sent: now };
        push_number(&mut self.output, slot as u64);
        self.output.push(b'.');
        push_number(&mut self.output, self.requests);
        self.output.push(b'\n');
    }

    /// A few kilobytes at most, which a socket that is being read always takes.
    fn flush(&mut self) -> anyhow::Result<()> {
        if !self.output.is_empty() {
            let n = self.wire.write(&self.output).context("write")?;
            ensure!(n == self.output.len(), "a short write");
            self.output.clear();
        }
        Ok(())
    }

    /// Checks the answers that are here; counts them and asks again, if there is something to count them in.
    fn take_answers(&mut self, answers: Option<&mut Answers>) -> anyhow::Result<()> {
        let room = self.input.room();
        let whole = room.len();
        let n = match self.wire.read(room) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        ensure!(n < whole, "there may be more, which a wire of TLS would keep");
        self.input.filled(n);
        self.check(answers)
    }

    fn check(&mut self, mut answers: Option<&mut Answers>) -> anyhow::Result<()> {
        let now = Instant::now();
        while let Some(line) = self.input.next_line() {
            let (slot, number) = parse_answer(line).with_context(|| format!("answer {}", line.escape_ascii()))?;
            let expected = self.slots.get(slot).context("an answer to a request that never was")?;
            ensure!(expected.number == number && number > 0, "an answer to a request that is not in flight");
            self.in_flight -= 1;
            if let Some(answers) = &mut answers {
                answers.count += 1;
                answers.latency.record(u64::try_from((now - expected.sent).as_nanos())?)?;
                self.request(slot, now);
            } else {
                self.slots[slot].number = 0;
            }
        }
        Ok(())
    }
}

fn parse_answer(line: &[u8]) -> Option<(usize, u64)> {
    let request = line.strip_suffix(b" -> OK")?;
    let dot = memchr::memchr(b'.', request)?;
    Some((usize::try_from(parse_number(&request[..dot])?).ok()?, parse_number(&request[dot + 1..])?))
}

fn parse_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')))
}

fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    let at = bytes.len();
    loop {
        bytes.push(b'0' + (number % 10) as u8);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    bytes[at..].reverse();
}
