//! A well-behaved client, who notices what others do to the server.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::Client;

/// How long answers took, sorted.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        self.0[((self.0.len() - 1) as f64 * part) as usize]
    }
}

/// From one ping to the next: long enough that these are no load themselves, and none waits for the one before it.
const PERIOD: Duration = Duration::from_millis(5);

/// One that is connected already.
pub(crate) struct Pinger(Client);

impl Pinger {
    pub(crate) fn connect(server: SocketAddr) -> Pinger {
        let client = Client::connect(server);
        client.socket.get_ref().set_nodelay(true).expect("nodelay");
        Pinger(client)
    }

    /// Pings for so long, on a fixed schedule: where an answer is late, those that were due meanwhile are sent after it and
    /// count as late too, as they would with clients that do not wait for one another.
    pub(crate) fn ping_for(&mut self, time: Duration) -> Times {
        let start = Instant::now();
        let mut times = Vec::new();
        let mut due = start;
        while due < start + time {
            let early = due.saturating_duration_since(Instant::now());
            thread::sleep(early);
            // What the sleep takes longer is not the server's.
            let sent = if early.is_zero() { due } else { Instant::now() };
            self.0.send("ping\n");
            // What is broadcast reaches it too.
            while self.0.line() != "pong" {}
            times.push(sent.elapsed());
            due += PERIOD;
        }
        times.sort_unstable();
        Times(times)
    }
}
