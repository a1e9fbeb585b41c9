//! The server that is attacked, in a process of its own: everything the library has, at the command of its clients.
//!
//! It says on its standard output where it listens, and then answers what it is asked on its standard input: `books`,
//! `recycle`, `shutdown MS`.

use std::io::{BufRead, Write};
use std::panic::panic_any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use backroom::{
    Framing, LengthPrefix, LengthType, Limits, Listener, Priority, Retry, Server, ServerHandle, TaskContext, TaskError,
    TaskOptions,
};
use peak_alloc::PeakAlloc;
use serde_json::json;

use crate::common::house::small_buffers;

type Connection = backroom::Connection<Job, String>;

/// Counts what is allocated: what is resident beyond that, the allocator keeps for the next time.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Tasks that tasks submitted, and the full queue refused.
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// How often the time of day has jumped.
static JUMPS: AtomicU64 = AtomicU64::new(0);

/// How large a frame may be.
pub(crate) const MAX_FRAME: usize = 64 * 1024;
/// When a client that takes too long over something is closed.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
enum Job {
    Echo(String),
    Panic,
    Bomb,
    Fail,
    /// Until it is given up.
    Endless,
    Sleep(Duration),
    /// Submits so many more.
    Nested(u32),
    Say(String),
}

/// Panics when it is dropped, as the payload of a panic may.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("the payload of a panic panics as well");
        }
    }
}

pub(crate) fn run(max_connections: usize) -> anyhow::Result<()> {
    std::panic::set_hook(Box::new(|_| ()));
    crate::common::raise_file_limit();
    let limits = Limits::new()
        .max_frame(MAX_FRAME)
        .max_outbox(256 * 1024)
        .frame_timeout(TIMEOUT)
        .write_timeout(TIMEOUT)
        .idle_timeout(Duration::from_secs(60));
    let prefix = LengthPrefix::new(LengthType::U32Be);
    let builder = Server::builder()
        .task_worker_num(4)
        .queue_capacity(1000)
        .max_connections(max_connections)
        .limits(limits)
        .listen(Listener::tcp("127.0.0.1:0").framing(Framing::lines()))
        .listen(Listener::tcp("127.0.0.1:0").framing(Framing::length_prefix(prefix)).name("frames"))
        // Where the kernel keeps little for those who take nothing: mostly it would keep megabytes before anything waits.
        .listen(Listener::tcp("127.0.0.1:0").framing(Framing::lines()).socket_options(small_buffers()).name("narrow"))
        .listen_udp("127.0.0.1:0");
    let server = builder
        .on_task(work)
        .on_receive(|conn, frame| match conn.listener() {
            "frames" => Ok(conn.send([&u32::try_from(frame.len())?.to_be_bytes(), frame].concat())?),
            _ => obey(conn, &String::from_utf8_lossy(frame)),
        })
        .on_finish(|conn, done| {
            let answer = done.into_result().unwrap_or_else(|failure| failure.to_string());
            // A client that takes nothing has its answers refused; it is closed for that by its timeout.
            let _ = conn.send(answer + "\n");
            Ok(())
        })
        .on_packet(|socket, from, data| {
            socket.task_then(Job::Echo(data.escape_ascii().to_string()), move |socket, done| {
                Ok(socket.send_to(from, done.into_result()?)?)
            })?;
            Ok(())
        })
        .build()?;

    let addresses: Vec<String> = server.local_addrs().iter().map(ToString::to_string).collect();
    say(&json!(addresses));
    let handle = server.handle();
    thread::spawn(move || obey_tester(&handle));
    thread::spawn(count_jumps);
    let report = server.run()?;
    say(&json!({
        "abandoned": report.tasks.abandoned,
        "pending": report.tasks.pending,
        "task_workers_running": report.task_workers_running,
        "workers_running": report.workers_running,
    }));
    Ok(())
}

fn say(what: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{what}").and_then(|()| out.flush());
}

fn obey_tester(server: &ServerHandle) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("recycle", _) => server.recycle(),
            ("shutdown", millis) => server.shutdown(Duration::from_millis(millis.parse().unwrap_or(0))),
            _ => say(&books(server)),
        }
    }
    server.shutdown(Duration::from_secs(5));
}

/// Compares the two clocks now and then.
fn count_jumps() {
    let (day, start) = (SystemTime::now(), Instant::now());
    let mut ahead = 0;
    loop {
        thread::sleep(Duration::from_millis(50));
        let elapsed = start.elapsed().as_secs_f64();
        let on_the_wall = match SystemTime::now().duration_since(day) {
            Ok(time) => time.as_secs_f64(),
            Err(error) => -error.duration().as_secs_f64(),
        };
        let half_hours = ((on_the_wall - elapsed) / 1800.0).round() as i64;
        if half_hours != ahead {
            ahead = half_hours;
            JUMPS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn books(server: &ServerHandle) -> serde_json::Value {
    let stats = server.stats();
    let (tasks, closed) = (stats.tasks, stats.closed);
    json!({
        "callbacks_panicked": closed.panicked,
        "frame_timeouts": closed.frame_timeout,
        "write_timeouts": closed.write_timeout,
        "frames_too_long": closed.frame_too_long,
        "broken": closed.io,
        "timed_out": tasks.timed_out,
        "retried": tasks.retried,
        "orphaned": tasks.orphaned,
        "one_way": tasks.one_way,
        "packets": stats.packets_received,
        "refused_tasks": REFUSED.load(Ordering::Relaxed),
        "jumps": JUMPS.load(Ordering::Relaxed),
        "heap": HEAP.current_usage(),
        "connections": stats.connections,
        "accepted_connections": stats.accepted_connections,
        "refused_connections": stats.refused.total(),
        "closed_connections": stats.closed.total(),
        "accepted": tasks.accepted,
        "outcomes": tasks.outcomes(),
        "pending": tasks.pending,
        "heard": tasks.delivered + tasks.orphaned + tasks.one_way,
        "panicked": tasks.panicked,
        "cancelled": tasks.cancelled,
        "late": tasks.late,
        "recycled": tasks.recycled,
        "task_workers": tasks.task_workers_busy + tasks.task_workers_idle + tasks.task_workers_renewing,
    })
}

fn obey(conn: &mut Connection, line: &str) -> anyhow::Result<()> {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    let number = || rest.parse::<u32>().unwrap_or(1);
    let millis = || Duration::from_millis(u64::from(number()));
    let options = TaskOptions::new();
    match command {
        "ping" => return Ok(conn.send("pong\n")?),
        "boom" => panic!("a callback panics"),
        "quit" => conn.close(),
        // Answers that wait for a client which takes none; the refusal of one does not end the connection.
        "big" => drop(conn.send("x".repeat(number() as usize) + "\n")),
        "many" => {
            // Beyond its cap it is refused, which is what this is about.
            let _ = (0..number()).try_for_each(|_| conn.task(Job::Echo(String::new())).map(drop));
        }
        "chain" => chain(conn, number())?,
        "wait" => {
            let answer = conn.task_wait(Job::Echo("waited".to_owned()), Duration::from_secs(10));
            conn.send(answer.unwrap_or_else(|failure| failure.to_string()) + "\n")?;
        }
        "cancel" => {
            let id = conn.task(Job::Endless)?;
            conn.cancel(id);
        }
        "delay" => drop(conn.with(options.after(millis())).task(Job::Echo("delayed".to_owned()))?),
        "timer" => drop(conn.after(millis(), |conn| Ok(conn.send("rang\n")?))),
        "deadline" => drop(conn.with(options.deadline(millis())).task(Job::Endless)?),
        "retry" => {
            let retry = Retry::attempts(3).backoff(Duration::from_millis(1), Duration::from_millis(10));
            conn.with(options.retry(retry)).task(Job::Fail)?;
        }
        "high" => drop(conn.with(options.priority(Priority::High)).task(Job::Echo(rest.to_owned()))?),
        "oneway" => drop(conn.task_oneway(Job::Echo(rest.to_owned()))?),
        "endless" => drop(conn.task(Job::Endless)?),
        "sleep" => drop(conn.task(Job::Sleep(millis()))?),
        "nested" => drop(conn.task(Job::Nested(number()))?),
        "panic" => drop(conn.task(Job::Panic)?),
        "bomb" => drop(conn.task(Job::Bomb)?),
        "say" => drop(conn.task(Job::Say(rest.to_owned()))?),
        _ => drop(conn.task(Job::Echo(line.to_owned()))?),
    }
    Ok(())
}

/// A task whose finish closure submits the next.
fn chain(conn: &mut Connection, left: u32) -> anyhow::Result<()> {
    conn.task_then(Job::Echo(String::new()), move |conn, _| match left {
        0 => Ok(conn.send("chained\n")?),
        _ => chain(conn, left - 1),
    })?;
    Ok(())
}

fn work(cx: &mut TaskContext<Job, String, (), ServerHandle>, job: Job) -> anyhow::Result<String> {
    match job {
        Job::Echo(text) => Ok(text),
        Job::Panic => panic!("a task panics"),
        Job::Bomb => panic_any(Bomb),
        Job::Fail => anyhow::bail!("a task fails"),
        Job::Endless => {
            while !cx.cancelled() {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(String::new())
        }
        Job::Sleep(time) => {
            thread::sleep(time);
            Ok("slept".to_owned())
        }
        Job::Nested(count) => {
            // At a full queue it is refused at once, and does not wait for itself.
            let inner = || cx.task_oneway(Job::Echo("inner".to_owned())).err().map(|refusal| refusal.reason());
            let refused = (0..count).filter(|_| inner() == Some(TaskError::QueueFull)).count();
            REFUSED.fetch_add(refused as u64, Ordering::Relaxed);
            Ok(format!("{refused} refused"))
        }
        Job::Say(text) => Ok(format!("told {}", cx.server().broadcast(text + "\n").sent)),
    }
}
