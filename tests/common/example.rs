//! An example as a stranger would use it: started, talked to, stopped by a signal.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::Client;

pub struct Example {
    pub child: Child,
    pub stdout: BufReader<ChildStdout>,
    pub stderr: ChildStderr,
}

impl Example {
    pub fn start(name: &str, args: &[&str]) -> Example {
        Example::start_as(Command::new(Example::program(name)).args(args))
    }

    /// `cargo test` builds the examples beside the tests.
    pub fn program(name: &str) -> PathBuf {
        let mut program = std::env::current_exe().unwrap();
        program.pop();
        program.pop();
        program.push("examples");
        program.push(name);
        program
    }

    /// By a command that runs the example in the end.
    pub fn start_as(command: &mut Command) -> Example {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the example, which `cargo test` builds unless it is told which test to run");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = child.stderr.take().unwrap();
        Example { child, stdout, stderr }
    }

    /// Where it listens, as it says first; once for each listener.
    pub fn address(&mut self) -> SocketAddr {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("where it listens");
        address.trim_start_matches("http://").parse().expect("an address")
    }

    pub fn client(&mut self) -> Client {
        Client::connect(self.address())
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn end(self) -> (String, ExitStatus) {
        let (output, errors, status) = self.end_with_errors();
        eprint!("{errors}");
        (output, status)
    }

    /// What it has written to stderr must fit into a pipe.
    pub fn end_with_errors(mut self) -> (String, String, ExitStatus) {
        let (mut output, mut errors) = (String::new(), String::new());
        self.stdout.read_to_string(&mut output).unwrap();
        self.stderr.read_to_string(&mut errors).unwrap();
        (output, errors, self.child.wait().unwrap())
    }
}

/// Where the test has failed, or does not care how it ends.
impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
