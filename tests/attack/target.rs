//! The attacked process, as the tester sees it.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

pub(crate) struct Target {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    pub(crate) lines: SocketAddr,
    pub(crate) frames: SocketAddr,
    pub(crate) packets: SocketAddr,
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

impl Target {
    pub(crate) fn start(max_connections: usize) -> Target {
        let mut command = Command::new(std::env::current_exe().expect("current_exe"));
        Target::start_by(command.arg("serve").arg(max_connections.to_string()))
    }

    /// By a command that starts this program's `serve` in the end.
    pub(crate) fn start_by(command: &mut Command) -> Target {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the server's process");
        let stdin = child.stdin.take().expect("stdin");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let first = stdout.next().expect("where it listens").expect("where it listens");
        let addresses: Vec<String> = serde_json::from_str(&first).expect("addresses");
        let [lines, frames, packets] = [0, 1, 2].map(|index: usize| addresses[index].parse().expect("an address"));
        Target { child, stdin, stdout, lines, frames, packets }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("it listens to its tester");
    }

    fn hear(&mut self) -> Value {
        let line = self.stdout.next().expect("it lives").expect("a line");
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

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn limit_files(&self, files: Option<u64>) -> Rlimit {
        let maximum = prlimit(Some(self.pid()), Resource::Nofile, self.files_as_they_are()).expect("prlimit").maximum;
        let current = files.or(maximum);
        prlimit(Some(self.pid()), Resource::Nofile, Rlimit { current, maximum }).expect("prlimit")
    }

    fn files_as_they_are(&self) -> Rlimit {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.child.id())).expect("limits");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("its limit of files");
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
        Rlimit { current: numbers.next(), maximum: numbers.next() }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("kill");
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

    /// Processor time so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it lives");
        let fields: Vec<&str> = stat.rsplit_once(") ").expect("stat").1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
        Duration::from_millis(1000 * ticks / rustix::param::clock_ticks_per_second())
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
