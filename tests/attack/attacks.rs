//! What clients do that mean harm, or know no better.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::house::slow_client;
use crate::common::{Client, PATIENCE};
use crate::house::{MAX_FRAME, TIMEOUT};
use crate::target::{Holds, Target};

pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// What `Attacker::done` counts.
    pub(crate) unit: &'static str,
    /// How many threads act at once.
    pub(crate) attackers: usize,
    act: fn(&Attacker),
    /// What the tester does beside them, about every millisecond.
    beside: Option<fn(&mut Target)>,
    /// Starts what is attacked, unless this machine has not what that needs.
    pub(crate) start: fn() -> Option<Target>,
    /// What of the server's books shows that it was done.
    pub(crate) shows: Option<&'static str>,
    /// Whether it can go on beside others, and with more of its kind.
    pub(crate) has_company: bool,
}

/// One thread of an attack.
#[derive(Clone)]
pub(crate) struct Attacker {
    lines: SocketAddr,
    frames: SocketAddr,
    narrow: SocketAddr,
    packets: SocketAddr,
    stop: Arc<AtomicBool>,
    /// It stops then, whatever `stop` says.
    until: Option<Instant>,
    done: Arc<AtomicU64>,
}

const fn attack(name: &'static str, unit: &'static str, attackers: usize, act: fn(&Attacker)) -> Attack {
    Attack { name, unit, attackers, act, beside: None, start: || Some(Target::start()), shows: None, has_company: true }
}

pub(crate) const ATTACKS: &[Attack] = &[
    attack("tasks that panic", "panics", 2, |it| it.asks_all(&["panic"])).shows("panicked"),
    attack("panics whose payload panics when dropped", "panics", 2, |it| it.asks_all(&["bomb"])).shows("panicked"),
    attack("callbacks that panic", "connections", 2, Attacker::makes_callbacks_panic).shows("callbacks_panicked"),
    attack("tasks without end on all task workers", "tasks", 1, |it| it.asks_all(&["deadline 200"])).shows("timed_out"),
    attack("a flood of tasks, answers not read", "lines", 4, Attacker::floods),
    attack("a flood of tasks from callbacks", "callbacks", 2, |it| it.asks_much("many 500")),
    attack("clients gone before their result", "connections", 2, Attacker::leaves_early).shows("orphaned"),
    attack("clients that end their half first", "connections", 2, Attacker::ends_its_half),
    attack("resets before the accept", "connections", 2, Attacker::resets_at_once),
    attack("resets in mid-frame", "connections", 2, Attacker::resets_in_mid_frame).shows("broken"),
    attack("2,000 connections at once, again and again", "connections", 4, Attacker::comes_in_hundreds),
    attack("2,000 clients that send a byte now and then", "bytes", 2, Attacker::trickles).shows("frame_timeouts"),
    attack("200 clients that take nothing", "requests", 2, Attacker::is_deaf).shows("write_timeouts"),
    attack("lengths that are lies", "frames", 2, Attacker::lies_about_lengths).shows("frames_too_long"),
    attack("random bytes", "bytes", 2, Attacker::sends_garbage),
    attack("a flood of datagrams", "datagrams", 1, Attacker::floods_packets).shows("packets"),
    attack("tasks that submit at a full queue", "tasks", 2, |it| it.asks_much("nested 600")).shows("refused_tasks"),
    attack("finish closures that submit the next", "tasks", 2, |it| it.asks_all(&["chain 1000"])),
    attack("callbacks that wait for tasks", "waits", 4, |it| it.asks_all(&["wait"])),
    attack("cancels, retries, delays, deadlines, timers", "requests", 2, |it| {
        it.asks_all(&["cancel", "retry", "delay 1", "deadline 1", "timer 1", "high x"]);
    })
    .shows("cancelled"),
    attack("one-way tasks of connections that close", "connections", 2, Attacker::leaves_tasks_behind).shows("one_way"),
    attack("broadcasts to 500, half of them deaf", "broadcasts", 1, Attacker::broadcasts).shows("write_timeouts"),
    attack("connections that ask once and go", "connections", 2, Attacker::comes_and_goes),
    Attack {
        beside: Some(Target::recycle),
        has_company: false,
        ..attack("recycling without pause, under load", "tasks", 2, |it| it.asks_all(&["echo"])).shows("recycled")
    },
    Attack {
        beside: Some(short_of_files),
        has_company: false,
        ..attack("no descriptors left", "connections", 2, Attacker::comes_in_crowds)
    },
    Attack {
        start: Target::start_with_few_threads,
        has_company: false,
        ..attack("no threads left", "connections", 2, Attacker::comes_in_crowds).shows("refused_connections")
    },
    Attack {
        start: Target::start_with_a_clock_that_jumps,
        has_company: false,
        beside: Some(Target::let_the_clock_jump),
        ..attack("a clock that jumps by an hour, back and forth", "timers", 1, Attacker::times_timers).shows("jumps")
    },
    Attack {
        has_company: false,
        ..attack("9,000 clients that come, ask and go", "connections", 1, Attacker::comes_in_thousands)
    },
];

fn short_of_files(target: &mut Target) {
    target.limit_files(64);
}

impl Attack {
    const fn shows(self, entry: &'static str) -> Attack {
        Attack { shows: Some(entry), ..self }
    }

    /// Runs until `stop`; how much was done, and what the server held when it held most.
    pub(crate) fn run(&self, target: &mut Target, stop: &Arc<AtomicBool>) -> (u64, Holds) {
        let attacker = Attacker { stop: Arc::clone(stop), ..Attacker::of(target) };
        let mut most = target.holds();
        thread::scope(|scope| {
            for _ in 0..self.attackers {
                scope.spawn(|| (self.act)(&attacker));
            }
            for moment in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if let Some(beside) = self.beside {
                    beside(target);
                }
                thread::sleep(Duration::from_millis(1));
                if moment % 250 == 0 {
                    most = most.max(target.holds());
                }
            }
        });
        (attacker.done.load(Ordering::Relaxed), most)
    }

    /// One thread of it, for so long; how much that did.
    pub(crate) fn run_for(&self, attacker: &Attacker, time: Duration) -> u64 {
        let attacker = Attacker { until: Some(Instant::now() + time), done: Arc::default(), ..attacker.clone() };
        (self.act)(&attacker);
        attacker.done.load(Ordering::Relaxed)
    }
}

impl Attacker {
    pub(crate) fn of(target: &Target) -> Attacker {
        let Target { lines, frames, narrow, packets, .. } = *target;
        Attacker { lines, frames, narrow, packets, stop: Arc::default(), until: None, done: Arc::default() }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && self.until.is_none_or(|until| Instant::now() < until)
    }

    fn count(&self, n: u64) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }

    /// Does that until it is told to stop, whatever comes of it.
    fn again_and_again(&self, mut act: impl FnMut() -> std::io::Result<u64>) {
        while self.goes_on() {
            match act() {
                Ok(done) => self.count(done),
                // It is refused; no use in trying at once.
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Sends these in turn, 64 at once, and reads an answer to each.
    fn asks_all(&self, lines: &[&str]) {
        let mut client = Client::connect(self.lines);
        let batch: String = lines.iter().cycle().take(64).flat_map(|line| [line, "\n"]).collect();
        while self.goes_on() {
            client.send(&batch);
            (0..64).for_each(|_| drop(answer(&mut client)));
            self.count(64);
        }
    }

    /// One line at a time, each of which has answers of its own number; on a new connection where one was closed.
    fn asks_much(&self, line: &str) {
        self.again_and_again(|| {
            let mut socket = connect(self.lines)?;
            let mut answers = socket.try_clone()?;
            thread::scope(|scope| {
                scope.spawn(move || while answers.read(&mut [0; 65536]).is_ok_and(|count| count > 0) {});
                let mut sent = 0;
                while self.goes_on() && socket.write_all(format!("{line}\n").as_bytes()).is_ok() {
                    sent += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                let _ = socket.shutdown(Shutdown::Both);
                Ok(sent)
            })
        });
    }

    fn makes_callbacks_panic(&self) {
        self.again_and_again(|| {
            let mut socket = connect(self.lines)?;
            socket.write_all(b"boom\n")?;
            let _ = socket.read(&mut [0; 16]);
            Ok(1)
        });
    }

    fn floods(&self) {
        let lines = "a line that becomes a task\n".repeat(1000);
        self.again_and_again(|| {
            let mut socket = connect(self.lines)?;
            socket.set_write_timeout(Some(Duration::from_millis(100)))?;
            let mut sent = 0;
            while self.goes_on() {
                match socket.write(lines.as_bytes()) {
                    Ok(count) => sent += count as u64 / 27,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
            Ok(sent)
        });
    }

    fn leaves_early(&self) {
        self.again_and_again(|| {
            let mut socket = connect(self.lines)?;
            socket.write_all(b"sleep 1\nsleep 1\n")?;
            Ok(1)
        });
    }

    /// Says at once that there is nothing more to come, and is owed every answer all the same.
    fn ends_its_half(&self) {
        self.again_and_again(|| {
            let mut client = Client::connect(self.lines);
            client.send("a task\n".repeat(20));
            client.end_sending();
            let rest = client.rest();
            let answers = rest.lines().filter(|line| *line == "a task").count();
            assert_eq!(answers, 20, "{rest:?}");
            Ok(1)
        });
    }

    fn resets_at_once(&self) {
        self.again_and_again(|| {
            reset(connect(self.lines)?);
            Ok(1)
        });
    }

    fn resets_in_mid_frame(&self) {
        self.again_and_again(|| {
            for (address, half) in [(self.lines, b"half a li".as_slice()), (self.frames, b"\0\0\0\x09half")] {
                let mut socket = connect(address)?;
                socket.write_all(half)?;
                reset(socket);
            }
            Ok(2)
        });
    }

    fn comes_in_hundreds(&self) {
        self.again_and_again(|| {
            let mut clients = (0..500).map(|_| connect(self.lines)).collect::<Result<Vec<_>, _>>()?;
            for client in &mut clients {
                client.write_all(b"ping\n")?;
            }
            for client in &mut clients {
                client.read_exact(&mut [0; 5])?;
            }
            Ok(500)
        });
    }

    /// None of what it begins is ever whole, so the server has to close each.
    fn trickles(&self) {
        let mut clients: Vec<(TcpStream, Instant)> = Vec::new();
        let pause = Duration::from_millis(500);
        while self.goes_on() {
            if clients.len() < 1000 {
                let Ok(socket) = connect(self.lines) else { continue };
                clients.push((socket, Instant::now()));
            }
            let now = Instant::now();
            clients.retain_mut(|(socket, next)| {
                if *next > now {
                    return true;
                }
                *next = now + pause;
                self.count(1);
                socket.write_all(b"x").is_ok()
            });
            if clients.len() == 1000 {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn is_deaf(&self) {
        self.again_and_again(|| {
            let mut clients: Vec<Client> = Vec::new();
            for _ in 0..100 {
                let mut client = slow_client(self.narrow);
                client.socket.get_mut().write_all(b"big 60000\n".repeat(10).as_slice())?;
                clients.push(client);
                // All at once, it would be the copying of so much that others notice.
                thread::sleep(Duration::from_millis(1));
            }
            self.waits(TIMEOUT + TIMEOUT / 2);
            Ok(1000)
        });
    }

    fn waits(&self, time: Duration) {
        let start = Instant::now();
        while self.goes_on() && start.elapsed() < time {
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn lies_about_lengths(&self) {
        let max = MAX_FRAME as u32 - 4;
        self.again_and_again(|| {
            for length in [0, 1, max, max + 1, 1 << 31, u32::MAX] {
                let mut socket = connect(self.frames)?;
                socket.write_all(&length.to_be_bytes())?;
                if length > max {
                    // Ends once the server has closed, or reset.
                    let ended = socket.read_to_end(&mut Vec::new());
                    assert!(!ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{length} is waited for");
                }
            }
            Ok(6)
        });
    }

    fn sends_garbage(&self) {
        let packets = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        self.again_and_again(|| {
            let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(fastrand::usize(1..4096)).collect();
            for address in [self.lines, self.frames] {
                let mut socket = connect(address)?;
                socket.set_read_timeout(Some(Duration::from_millis(1)))?;
                let _ = socket.write_all(&bytes);
                let _ = socket.read(&mut [0; 4096]);
            }
            packets.send_to(&bytes, self.packets)?;
            Ok(3 * bytes.len() as u64)
        });
    }

    fn floods_packets(&self) {
        let packets = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        self.again_and_again(|| {
            for _ in 0..100 {
                packets.send_to(b"a datagram that becomes a task", self.packets)?;
            }
            Ok(100)
        });
    }

    fn leaves_tasks_behind(&self) {
        self.again_and_again(|| {
            let mut socket = connect(self.lines)?;
            socket.write_all("oneway x\n".repeat(20).as_bytes())?;
            Ok(1)
        });
    }

    fn broadcasts(&self) {
        let deaf = || (0..250).map(|_| slow_client(self.narrow)).collect::<Vec<_>>();
        let (mut now_deaf, mut since) = (deaf(), Instant::now());
        let listening: Vec<TcpStream> = (0..250).map(|_| connect(self.lines).expect("connect")).collect();
        listening.iter().for_each(|socket| socket.set_nonblocking(true).expect("nonblocking"));
        let mut author = Client::connect(self.lines);
        let news = format!("say {}\n", NEWS.repeat(64));
        let mut chunk = [0; 65536];
        while self.goes_on() {
            author.send(&news);
            answer(&mut author);
            for mut socket in &listening {
                while socket.read(&mut chunk).is_ok_and(|count| count > 0) {}
            }
            self.count(1);
            if since.elapsed() > TIMEOUT + TIMEOUT / 2 {
                // Those before were closed for it.
                (now_deaf, since) = (deaf(), Instant::now());
            }
        }
        drop(now_deaf);
    }

    fn comes_and_goes(&self) {
        self.again_and_again(|| {
            let mut socket = connect(self.lines)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.write_all(b"ping\n")?;
            socket.read_exact(&mut [0; 5])?;
            Ok(1)
        });
    }

    /// More than there is room for; those that are served stay for a while.
    fn comes_in_crowds(&self) {
        self.again_and_again(|| {
            let mut clients = (0..100).map(|_| connect(self.lines)).collect::<Result<Vec<_>, _>>()?;
            let served = clients.iter_mut().filter_map(|client| {
                client.set_read_timeout(Some(Duration::from_millis(2))).ok()?;
                client.write_all(b"ping\n").and_then(|()| client.read_exact(&mut [0; 5])).ok()
            });
            Ok(served.count() as u64)
        });
    }

    /// By this process's clock, which does not jump.
    fn times_timers(&self) {
        let mut client = Client::connect(self.lines);
        let mut silent = Client::connect(self.lines);
        while self.goes_on() {
            for line in ["timer 200", "delay 200"] {
                let start = Instant::now();
                client.ask(line);
                let took = start.elapsed().as_millis();
                assert!((200..1200).contains(&took), "{line} took {took} ms");
                self.count(1);
            }
        }
        assert_eq!(silent.ask("ping"), "pong", "no timeout has come early");
    }

    fn comes_in_thousands(&self) {
        let mut clients: Vec<TcpStream> = Vec::new();
        while self.goes_on() {
            if clients.len() >= 9000 {
                clients.truncate(8000);
            }
            let Ok(mut client) = connect(self.lines) else { continue };
            let answered = client.write_all(b"echo\n").and_then(|()| client.read_exact(&mut [0; 5]));
            clients.push(client);
            self.count(u64::from(answered.is_ok()));
        }
    }
}

/// What is broadcast begins so, and so no answer does.
const NEWS: &str = "news, and more of";

/// The next answer, without what is broadcast meanwhile.
fn answer(client: &mut Client) -> String {
    let lines = std::iter::repeat_with(|| client.line());
    lines.filter(|line| !line.starts_with(NEWS)).take(1).collect()
}

/// A server that does not answer in time fails what asks it, and hangs nothing.
fn connect(server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn reset(socket: TcpStream) {
    let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}
