//! Connect, one request, close; so many at once, again and again.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use socket2::{Domain, Socket, Type};

use crate::Options;
use crate::shared::process::ServerProcess;
use crate::shared::report::{Answers, Measured, Table};

const AT_ONCE: usize = 64;
const NAMES: [&str; 3] = ["backroom", "tokio", "two threads"];
const STALLED: Duration = Duration::from_secs(5);

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let names = options.names(&NAMES);
    let servers = names.iter().map(|name| ServerProcess::start(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut table = Table::new(&names);
    let mut sources = 0;
    for round in 0..options.rounds {
        for turn in 0..servers.len() {
            let column = (round + turn) % servers.len();
            let server = &servers[column];
            load(server.addr(), options.time / 5, &mut sources)?;
            let before = server.cpu_time()?;
            let answers = load(server.addr(), options.time, &mut sources)?;
            table.add(column, Measured::new(&answers, server.cpu_time()? - before));
        }
    }
    println!("\nchurn: connect, one request, close; {AT_ONCE} at once");
    table.print();
    Ok(())
}

struct Visit {
    socket: Socket,
    began: Instant,
    answer: Vec<u8>,
}

/// One thread, all connections in one epoll.
fn load(addr: SocketAddr, time: Duration, sources: &mut u32) -> anyhow::Result<Answers> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut answers = Answers { count: 0, time: Duration::ZERO, latency: Histogram::new(3)? };
    let start = Instant::now();
    let mut begin = |slot: usize| -> anyhow::Result<Visit> {
        let visit = connect(addr, sources)?;
        epoll::add(&epoll, &visit.socket, epoll::EventData::new_u64(slot as u64), epoll::EventFlags::IN)?;
        Ok(visit)
    };
    let mut visits = (0..AT_ONCE).map(|slot| begin(slot).map(Some)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut events = Vec::with_capacity(AT_ONCE);
    while visits.iter().any(Option::is_some) {
        let timeout = Timespec::try_from(STALLED)?;
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        ensure!(!events.is_empty(), "the server has answered nothing for {STALLED:?}");
        for event in events.drain(..) {
            let slot = event.data.u64() as usize;
            if !visits[slot].as_mut().context("an event of a closed socket")?.is_answered()? {
                continue;
            }
            let visit = visits[slot].take().context("a visit")?;
            let took = visit.began.elapsed();
            drop(visit);
            if start.elapsed() < time {
                answers.count += 1;
                answers.latency.record(u64::try_from(took.as_nanos())?)?;
                visits[slot] = Some(begin(slot)?);
            } else if answers.time.is_zero() {
                answers.time = start.elapsed();
            }
        }
    }
    Ok(answers)
}

/// From one of many addresses, since each has only so many ports, and those of closed connections are not free at once.
fn connect(addr: SocketAddr, sources: &mut u32) -> anyhow::Result<Visit> {
    *sources += 1;
    let source = Ipv4Addr::from_bits(0x7f00_0002 + *sources % 200);
    let began = Instant::now();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&addr.into())?;
    socket.set_nonblocking(true)?;
    (&socket).write_all(b"hello\n")?;
    Ok(Visit { socket, began, answer: Vec::new() })
}

impl Visit {
    fn is_answered(&mut self) -> anyhow::Result<bool> {
        let mut bytes = [0; 64];
        match (&self.socket).read(&mut bytes) {
            Ok(n) => self.answer.extend_from_slice(&bytes[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let right = b"hello -> OK\n";
        ensure!(!self.answer.is_empty() && right.starts_with(&self.answer), "a wrong answer");
        Ok(self.answer == right)
    }
}
