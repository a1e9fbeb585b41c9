//! One message to thousands of connections: how long until the first has it, and the last.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::event::{Timespec, epoll};

use crate::Options;
use crate::rivals::MESSAGE;
use crate::shared::process::ServerProcess;
use crate::shared::report::median;

const MEMBERS: usize = 5_000;
const NAMES: [&str; 2] = ["backroom, broadcast", "tokio, broadcast"];
const STALLED: Duration = Duration::from_secs(10);

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let names = options.names(&NAMES);
    let mut rooms = Vec::new();
    for name in &names {
        let server = ServerProcess::start(name)?;
        rooms.push((Room::enter(server.addr())?, server));
    }
    let mut times = vec![Vec::new(); names.len()];
    for round in 0..options.rounds * 3 {
        for turn in 0..rooms.len() {
            let column = (round + turn) % rooms.len();
            let (room, server) = &mut rooms[column];
            let before = server.cpu_time()?;
            let (first, last) = room.broadcast()?;
            times[column].push((first, last, server.cpu_time()? - before));
        }
    }
    println!("\nbroadcast: {} bytes to {MEMBERS} connections, from the author's line to the delivery", MESSAGE.len());
    let mut lasts = Vec::new();
    for ((name, times), (_, server)) in names.iter().zip(&times).zip(&rooms) {
        let figure = |get: fn(&(Duration, Duration, Duration)) -> Duration| {
            let mut values: Vec<f64> = times.iter().map(|times| get(times).as_secs_f64() * 1e3).collect();
            (median(&mut values), values[0], values[values.len() - 1])
        };
        let [first, last, cpu] = [figure(|times| times.0), figure(|times| times.1), figure(|times| times.2)];
        println!(
            "{name:<24} first {:.2} ms ({:.2}–{:.2}), last {:.2} ms ({:.2}–{:.2}), server CPU {:.0} ms, {} MiB resident",
            first.0,
            first.1,
            first.2,
            last.0,
            last.1,
            last.2,
            cpu.0,
            server.resident_kib()? / 1024
        );
        lasts.push(last.0);
    }
    if let [ours, theirs] = lasts[..] {
        println!("{} / {}: last delivery × {:.2}", names[0], names[1], ours / theirs);
    }
    Ok(())
}

/// The members, and the author, who is one more.
struct Room {
    author: TcpStream,
    members: Vec<(TcpStream, usize)>,
    epoll: rustix::fd::OwnedFd,
}

impl Room {
    fn enter(addr: SocketAddr) -> anyhow::Result<Room> {
        let author = TcpStream::connect(addr)?;
        author.set_nodelay(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut members = Vec::with_capacity(MEMBERS);
        for index in 0..MEMBERS {
            let socket = TcpStream::connect(addr)?;
            socket.set_nonblocking(true)?;
            epoll::add(&epoll, &socket, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
            members.push((socket, 0));
        }
        // All are in, and at rest, by then; there is no event for it.
        std::thread::sleep(Duration::from_secs(2));
        let mut room = Room { author, members, epoll };
        room.broadcast()?;
        Ok(room)
    }

    /// From the author's line to the first and the last delivery.
    fn broadcast(&mut self) -> anyhow::Result<(Duration, Duration)> {
        let start = Instant::now();
        self.author.write_all(b"say\n")?;
        let (mut first, mut whole) = (None, 0);
        let mut events = Vec::with_capacity(1024);
        let mut buffer = [0; 4096];
        while whole < MEMBERS {
            let timeout = Timespec::try_from(STALLED)?;
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
            ensure!(!events.is_empty(), "{whole} of {MEMBERS} have it after {STALLED:?}");
            for event in events.drain(..) {
                let (socket, got) = &mut self.members[event.data.u64() as usize];
                match socket.read(&mut buffer) {
                    Ok(n) => {
                        ensure!(n > 0 && MESSAGE[*got..].starts_with(&buffer[..n]), "a wrong message");
                        *got += n;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error.into()),
                }
                if *got == MESSAGE.len() {
                    *got = 0;
                    whole += 1;
                    first.get_or_insert_with(|| start.elapsed());
                }
            }
        }
        let last = start.elapsed();
        let mut own = vec![0; MESSAGE.len()];
        self.author.read_exact(&mut own)?;
        Ok((first.unwrap_or(last), last))
    }
}
