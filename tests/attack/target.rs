//! The attacked process, as the tester sees it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, geteuid, getrlimit, prlimit};
use serde_json::Value;

use crate::common::{PATIENCE, TempDir};

pub(crate) struct Target {
    child: Child,
    stdin: ChildStdin,
    said: mpsc::Receiver<String>,
    pub(crate) lines: SocketAddr,
    pub(crate) frames: SocketAddr,
    pub(crate) narrow: SocketAddr,
    pub(crate) packets: SocketAddr,
    started: Instant,
    /// What it was started from, or reads.
    folder: Option<TempDir>,
}

fn this_program() -> PathBuf {
    std::env::current_exe().expect("current_exe")
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holds {
    /// Allocated bytes.
    pub(crate) heap: u64,
    pub(crate) threads: usize,
    pub(crate) files: usize,
    pub(crate) resident_kib: usize,
}

/// Connections at once.
const MAX_CONNECTIONS: &str = "9500";
/// Of the user whom the server with few threads runs as; nobody else has any.
const FEW_THREADS: &str = "40";
/// Which user is bound by limits of threads.
const NOBODY: &str = "65534";

impl Holds {
    /// The most of each.
    pub(crate) fn max(self, other: Holds) -> Holds {
        Holds {
            heap: self.heap.max(other.heap),
            threads: self.threads.max(other.threads),
            files: self.files.max(other.files),
            resident_kib: self.resident_kib.max(other.resident_kib),
        }
    }
}

impl Target {
    pub(crate) fn start() -> Target {
        Target::start_by(Command::new(this_program()).args(["serve", MAX_CONNECTIONS]))
    }

    /// Needs root, since it becomes another user.
    pub(crate) fn start_with_few_threads() -> Option<Target> {
        if !geteuid().is_root() || !is_there("setpriv") || !is_there("prlimit") {
            return None;
        }
        let folder = TempDir::new("few_threads");
        let program = folder.join("serve");
        fs::copy(this_program(), &program).expect("a copy that all may run");
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--clear-groups", "prlimit", &format!("--nproc={FEW_THREADS}")]);
        let mut target = Target::start_by(command.arg(&program).args(["serve", MAX_CONNECTIONS]));
        target.folder = Some(folder);
        Some(target)
    }

    /// By libfaketime, if that is installed; and only the time of day jumps, as it does on a machine.
    pub(crate) fn start_with_a_clock_that_jumps() -> Option<Target> {
        if !is_there("faketime") {
            return None;
        }
        let folder = TempDir::new("clock");
        fs::write(folder.join("clock"), "+0").expect("write");
        let mut command = Command::new(this_program());
        command.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command.env("FAKETIME_TIMESTAMP_FILE", folder.join("clock")).env("FAKETIME_NO_CACHE", "1");
        let mut target = Target::start_by(command.args(["serve", MAX_CONNECTIONS]));
        target.folder = Some(folder);
        Some(target)
    }

    /// An hour ahead, an hour back, for two seconds each.
    pub(crate) fn let_the_clock_jump(&mut self) {
        let elapsed = self.started.elapsed();
        let clock = self.folder.as_ref().expect("its clock").join("clock");
        fs::write(clock, if elapsed.as_secs() / 2 % 2 == 0 { "+3600" } else { "-3600" }).expect("write");
    }

    /// By a command that starts this program's `serve` in the end.
    pub(crate) fn start_by(command: &mut Command) -> Target {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the server's process");
        let stdin = child.stdin.take().expect("stdin");
        let stdout = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let (sender, said) = mpsc::channel();
        thread::spawn(move || stdout.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let first = said.recv_timeout(PATIENCE).expect("where it listens");
        let addresses: Vec<String> = serde_json::from_str(&first).expect("addresses");
        let [lines, frames, narrow, packets] =
            [0, 1, 2, 3].map(|index: usize| addresses[index].parse().expect("an address"));
        Target { child, stdin, said, lines, frames, narrow, packets, started: Instant::now(), folder: None }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("it listens to its tester");
    }

    fn hear(&mut self) -> Value {
        let line = self.said.recv_timeout(PATIENCE).expect("it answers its tester");
        serde_json::from_str(&line).expect("JSON")
    }

    pub(crate) fn books(&mut self) -> Books {
        self.tell("books");
        Books(self.hear())
    }

    pub(crate) fn recycle(&mut self) {
        self.tell("recycle");
    }

    /// Its report.
    pub(crate) fn shut_down(mut self, deadline: Duration) -> Value {
        self.tell(&format!("shutdown {}", deadline.as_millis()));
        let report = self.hear();
        assert!(self.child.wait().expect("wait").success());
        report
    }

    pub(crate) fn limit_files(&self, files: u64) {
        let limit = Rlimit { current: Some(files), maximum: getrlimit(Resource::Nofile).maximum };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).expect("prlimit");
    }

    pub(crate) fn holds(&mut self) -> Holds {
        let heap = self.books().of("heap");
        let proc = format!("/proc/{}", self.child.id());
        let count = |folder: &str| fs::read_dir(format!("{proc}/{folder}")).expect("it lives").count();
        let status = fs::read_to_string(format!("{proc}/status")).expect("it lives");
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        Holds { heap, threads: count("task"), files: count("fd"), resident_kib: resident.expect("its memory") }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Books(Value);

impl Books {
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_else(|| panic!("{name} in {}", self.0))
    }

    /// Nothing is under way, and both accounts balance.
    pub(crate) fn are_at_rest(&self) -> bool {
        let [accepted, outcomes, heard] = ["accepted", "outcomes", "heard"].map(|name| self.of(name));
        self.of("pending") == 0 && accepted == outcomes && outcomes == heard
    }
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
