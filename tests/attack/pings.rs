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

/// From one ping to the next, so that these are no load themselves.
const PERIOD: Duration = Duration::from_millis(1);

/// One that is connected already.
pub(crate) struct Pinger(Client);

impl Pinger {
    pub(crate) fn connect(server: SocketAddr) -> Pinger {
        let client = Client::connect(server);
        client.socket.get_ref().set_nodelay(true).expect("nodelay");
        Pinger(client)
    }

    /// Pings for so long, on a fixed schedule: where an answer is late, the pings that were due meanwhile count as late
    /// too, as they would with clients that do not wait for one another.
    pub(crate) fn ping_for(&mut self, time: Duration) -> Times {
        let start = Instant::now();
        let mut times = Vec::new();
        let mut due = start;
        while due < start + time {
            let now = Instant::now();
            if now < due {
                thread::sleep(due - now);
                // What the sleep takes longer is not the server's.
                due = Instant::now();
            }
            self.0.send("ping\n");
            // What is broadcast reaches it too.
            while self.0.line() != "pong" {}
            times.push(due.elapsed());
            due += PERIOD;
        }
        times.sort_unstable();
        Times(times)
    }
}
