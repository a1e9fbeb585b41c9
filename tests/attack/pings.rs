//! A well-behaved client, who notices what others do to the server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::Client;

/// How long answers took.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        self.0[((self.0.len() - 1) as f64 * part) as usize]
    }
}

/// Between two pings, so that these are no load themselves.
const PAUSE: Duration = Duration::from_millis(1);

/// One that is connected already.
pub(crate) struct Pinger(Client);

impl Pinger {
    pub(crate) fn connect(server: SocketAddr) -> Pinger {
        let client = Client::connect(server);
        client.socket.get_ref().set_nodelay(true).expect("nodelay");
        Pinger(client)
    }

    /// Pings until it is told to stop, and at least a thousand times.
    pub(crate) fn ping_until(&mut self, stop: &AtomicBool) -> Times {
        let mut times = Vec::new();
        while !stop.load(Ordering::Relaxed) || times.len() < 1000 {
            thread::sleep(PAUSE);
            let start = Instant::now();
            self.0.send("ping\n");
            // What is broadcast reaches it too.
            while self.0.line() != "pong" {}
            times.push(start.elapsed());
        }
        times.sort_unstable();
        Times(times)
    }

    pub(crate) fn ping_for(&mut self, time: Duration) -> Times {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(time);
                stop.store(true, Ordering::Relaxed);
            });
            self.ping_until(&stop)
        })
    }
}
