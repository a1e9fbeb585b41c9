//! What the tests share: a server on its own thread, a client of lines, and things to wait on.

#![allow(dead_code, unreachable_pub, clippy::unit_arg)]

pub mod example;
pub mod house;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backroom::{Finished, OutcomeKind, RunError, Server, ServerHandle, ShutdownReport, Submitter, TaskStats};
use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

/// Far longer than anything here takes; only a broken promise waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A server that runs on a thread of its own.
pub struct Running {
    pub handle: ServerHandle,
    thread: JoinHandle<Result<ShutdownReport, RunError>>,
}

pub fn run(server: Server) -> Running {
    let handle = server.handle();
    Running { handle, thread: thread::spawn(move || server.run()) }
}

impl Running {
    pub fn addr(&self) -> SocketAddr {
        self.handle.local_addr().inet().expect("a TCP address")
    }

    pub fn client(&self) -> Client {
        Client::connect(self.addr())
    }

    /// Shuts down with all the time in the world, and checks that the books balance and nothing was lost.
    pub fn stop(self) -> ShutdownReport {
        let report = self.stop_within(PATIENCE);
        assert_eq!(report.tasks.abandoned, 0, "{report:?}");
        assert_eq!((report.task_workers_running, report.workers_running), (0, 0), "{report:?}");
        report
    }

    pub fn stop_within(self, deadline: Duration) -> ShutdownReport {
        self.handle.shutdown(deadline);
        self.ended()
    }

    pub fn ended(self) -> ShutdownReport {
        let report = self.ended_with_pending();
        assert_balanced(&report.tasks);
        report
    }

    /// Of a server whose tasks could not all be ended, since code of the program hangs.
    pub fn ended_with_pending(self) -> ShutdownReport {
        self.thread.join().expect("run panicked").expect("run failed")
    }
}

/// At rest, both accounts balance.
pub fn assert_balanced(tasks: &TaskStats) {
    assert_eq!(tasks.pending, 0, "{tasks:?}");
    assert_eq!(tasks.accepted, tasks.outcomes(), "{tasks:?}");
    assert_eq!(tasks.outcomes(), tasks.delivered + tasks.orphaned + tasks.one_way, "{tasks:?}");
}

/// Where finish closures leave what they heard.
pub type Heard<X> = Rc<RefCell<Vec<X>>>;

pub fn heard<X>() -> Heard<X> {
    Rc::default()
}

/// Runs finish closures until nothing is in flight.
pub fn finish_all<T: Send, R: Send>(submitter: &mut Submitter<T, R>) {
    let start = Instant::now();
    while submitter.tasks_in_flight() > 0 {
        assert!(start.elapsed() < PATIENCE, "{submitter:?}");
        submitter.run_finished_for(PATIENCE);
    }
}

/// Runs finish closures until so much is in `heard`.
pub fn finish_until<T: Send, R: Send, X>(submitter: &mut Submitter<T, R>, heard: &Heard<X>, count: usize) {
    let start = Instant::now();
    while heard.borrow().len() < count {
        assert!(start.elapsed() < PATIENCE, "{submitter:?}");
        submitter.run_finished_for(PATIENCE);
    }
}

/// A finish closure that leaves there how its task ended.
pub fn ends<T: Send, R: Send>(
    heard: &Heard<OutcomeKind>,
) -> impl FnOnce(&mut Submitter<T, R>, Finished<R>) -> anyhow::Result<()> + use<T, R> {
    let heard = Rc::clone(heard);
    move |_, done| Ok(heard.borrow_mut().push(done.outcome().kind()))
}

/// A client that speaks lines.
pub struct Client {
    pub socket: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(addr: impl ToSocketAddrs) -> Client {
        let socket = TcpStream::connect(addr).expect("connect");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        socket.set_write_timeout(Some(PATIENCE)).expect("timeout");
        Client { socket: BufReader::new(socket) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.get_mut().write_all(bytes.as_ref()).expect("send");
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.socket.read_line(&mut line).expect("an answer");
        assert!(line.ends_with('\n'), "the connection closed after {line:?}");
        line.pop();
        line
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n"));
        self.line()
    }

    /// Everything until the server closes.
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = self.socket.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }

    pub fn end_sending(&self) {
        self.socket.get_ref().shutdown(std::net::Shutdown::Write).expect("shutdown");
    }

    /// Closes with a reset instead of an orderly end.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(self.socket.get_ref());
        socket.set_linger(Some(Duration::ZERO)).expect("linger");
    }
}

/// Closed until it is opened; then open for ever.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }

    pub fn pass(&self) {
        let mut open = self.0.0.lock();
        let result = self.0.1.wait_while_for(&mut open, |open| !*open, PATIENCE);
        assert!(!result.timed_out(), "the gate was never opened");
    }
}

/// Events that callbacks report, to be waited for in order.
pub struct Events<E>(Receiver<E>);

pub fn events<E>() -> (Sender<E>, Events<E>) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    (sender, Events(receiver))
}

impl<E> Events<E> {
    pub fn next(&self) -> E {
        self.0.recv_timeout(PATIENCE).expect("an event that never came")
    }

    pub fn all_so_far(&self) -> Vec<E> {
        self.0.try_iter().collect()
    }
}

/// For what has no event of its own, such as a counter in the stats.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never came true: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

struct Logged(Mutex<Vec<String>>);

static LOGGED: Logged = Logged(Mutex::new(Vec::new()));

impl log::Log for Logged {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// Keeps what is logged from now on, at this level and above, in this process.
pub fn log_from(level: log::LevelFilter) -> &'static Mutex<Vec<String>> {
    log::set_logger(&LOGGED).expect("the first logger");
    log::set_max_level(level);
    &LOGGED.0
}

const CHILD: &str = "BACKROOM_TEST_CHILD";

/// Runs the calling test again in a process of its own, as its child part; `None` in that child.
#[macro_export]
macro_rules! in_child {
    () => {
        $crate::common::run_again($crate::test_name!())
    };
}

/// The name of the calling test.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        std::any::type_name_of_val(&here).rsplit("::").nth(1).unwrap()
    }};
}

pub fn run_again(test: &str) -> Option<Child> {
    if is_child() {
        return None;
    }
    let mut command = as_child(Command::new(std::env::current_exe().expect("current_exe")), test);
    command.stdin(Stdio::piped());
    Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn"))
}

/// Whether this process runs the child part of a test.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// What this command starts, a test binary in the end, runs the child part of that test.
pub fn as_child(mut command: Command, test: &str) -> Command {
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    command
}

pub fn succeeds(child: Child) -> (String, String) {
    let output = child.wait_with_output().expect("wait");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}\n{stdout}\n{stderr}", output.status);
    assert!((stdout.clone() + &stderr).contains("1 passed"), "no test ran:\n{stdout}\n{stderr}");
    (stdout, stderr)
}

/// Processor time of this process so far. Opens no file, since there may be none left.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("a time that is not negative")
}

/// Lets this process open as many files as it may, for the tests with many clients; many systems begin at 1,024.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the limit can be raised to its maximum");
}

/// The memory that this process has in use.
pub fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: usize = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    pages * rustix::param::page_size()
}

pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("fd").count()
}

pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("task").count()
}

/// Whether a test that needs these programs can run. Where the environment says that they are there, they must be.
pub fn programs(names: &[&str]) -> bool {
    const HAS_PROGRAMS: &str = "BACKROOM_TEST_PROGRAMS";
    if std::env::var_os(HAS_PROGRAMS).is_none_or(|value| value != "1") {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        skip(&test, &format!("it needs {names:?} (set {HAS_PROGRAMS}=1 to run it)"));
        return false;
    }
    let path = std::env::var_os("PATH").expect("PATH");
    for name in names {
        assert!(std::env::split_paths(&path).any(|place| place.join(name).is_file()), "{name} is not installed");
    }
    true
}

/// A program that is killed when this is dropped.
pub struct Program(pub Child);

impl Program {
    pub fn start(command: &mut Command) -> Program {
        Program(command.spawn().expect("spawn"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory of one test, removed when this is dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(test: &str) -> TempDir {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        // The path of a Unix socket has room for some hundred bytes.
        let name: String = test.split('_').filter_map(|word| word.chars().next()).collect();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("backroom-{}-{number}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("create_dir");
        TempDir(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether a test that needs IPv6 can run. Almost every machine has its loopback address.
pub fn has_ipv6(test: &str) -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        skip(test, "this machine has no ::1");
    }
    has
}

/// Not by `eprintln`, which a test that passes keeps to itself.
fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}
